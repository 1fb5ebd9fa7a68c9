//! Addresses as contexts give them: words in network order.

use warren_ebpf_abi::mapped;

/// The canonical form of an IPv4 word.
#[inline(always)]
pub(crate) fn from_v4(word: u32) -> [u8; 16] {
    mapped(word.to_ne_bytes())
}

/// The canonical form of IPv6 words; mapped IPv4 comes out as such by itself.
#[inline(always)]
pub(crate) fn from_v6(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = [words[0].to_ne_bytes(), words[1].to_ne_bytes(), words[2].to_ne_bytes(), words[3].to_ne_bytes()];
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// The IPv4 address inside a canonical form.
#[inline(always)]
pub(crate) fn as_v4(ip: &[u8; 16]) -> Option<[u8; 4]> {
    match ip {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([*a, *b, *c, *d]),
        _ => None,
    }
}

/// Whether a canonical form never leaves the namespace: loopback, or "any", which the kernel takes for loopback.
#[inline(always)]
pub(crate) fn is_loopback(ip: &[u8; 16]) -> bool {
    match as_v4(ip) {
        Some(v4) => v4[0] == 127 || v4 == [0; 4],
        None => matches!(ip, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 | 1]),
    }
}

/// The canonical form of an address that a context gives in both families' fields.
///
/// All fields are read before the family is looked at, in a way that the compiler leaves as it is: a read at an offset
/// that depends on the family would be refused by the verifier.
#[inline(always)]
pub(crate) fn either(is_v4: bool, v4: *const u32, v6: *const [u32; 4]) -> [u8; 16] {
    let words = v6.cast::<u32>();
    // SAFETY: the caller points into its context, whose fields of the other family read as zero.
    let (v4, v6) = unsafe {
        let word = |index| words.add(index).read_volatile();
        (v4.read_volatile(), [word(0), word(1), word(2), word(3)])
    };
    if is_v4 { from_v4(v4) } else { from_v6(v6) }
}
