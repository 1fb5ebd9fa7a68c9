//! What a spliced socket receives by TCP joins the queue that spliced bytes are in: one queue keeps one order.

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::macros::stream_verdict;
use aya_ebpf::programs::SkBuffContext;

#[stream_verdict]
pub fn warren_splice_keep(_: SkBuffContext) -> u32 {
    SK_PASS
}
