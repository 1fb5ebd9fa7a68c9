//! Header blocks from a hostile peer: nothing breaks, and what is understood can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_core::http2::{Decoder, encoder};

fuzz_target!(|blocks: Vec<&[u8]>| {
    let mut decoder = Decoder::new(4096);
    for block in blocks {
        let mut fields = Vec::new();
        if decoder.decode(block, |name, value| fields.push((name.to_vec(), value.to_vec()))).is_err() {
            return;
        }
        let mut again = Vec::new();
        for (name, value) in &fields {
            encoder::field(&mut again, name, value);
        }
        let mut read = Vec::new();
        Decoder::new(0).decode(&again, |name, value| read.push((name.to_vec(), value.to_vec()))).unwrap();
        assert_eq!(read, fields);
    }
});
