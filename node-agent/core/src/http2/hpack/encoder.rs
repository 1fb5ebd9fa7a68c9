//! Writing header blocks. Fields are literals without indexing: a head is sent once per connection that is carried,
//! and a block without state can be written, lost or repeated without harm to the next.

/// `:authority` in the static table.
const AUTHORITY: usize = 1;
/// `:method` in the static table.
const METHOD: usize = 2;
/// `:status` in the static table; 200 itself has index 8.
const STATUS: usize = 8;
const STATUS_200: u8 = 0x80 | 8;

/// `:method: CONNECT`.
pub fn connect_method(out: &mut Vec<u8>) {
    literal_with_index(out, METHOD, b"CONNECT");
}

/// `:authority`.
pub fn authority(out: &mut Vec<u8>, value: &str) {
    literal_with_index(out, AUTHORITY, value.as_bytes());
}

/// `:status`, three digits.
pub fn status(out: &mut Vec<u8>, code: u16) {
    match code {
        200 => out.push(STATUS_200),
        code => literal_with_index(out, STATUS, code.to_string().as_bytes()),
    }
}

/// A field with a name of its own.
pub fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(0);
    text(out, name);
    text(out, value);
}

fn literal_with_index(out: &mut Vec<u8>, index: usize, value: &[u8]) {
    integer(out, 0, 4, index);
    text(out, value);
}

fn text(out: &mut Vec<u8>, value: &[u8]) {
    integer(out, 0, 7, value.len());
    out.extend_from_slice(value);
}

fn integer(out: &mut Vec<u8>, flags: u8, prefix: u32, value: usize) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        out.push(flags | value as u8);
        return;
    }
    out.push(flags | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Decoder;
    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            code in 100u16..1000,
            target in "[a-z0-9.:]{1,300}",
            fields in prop::collection::vec(("[a-z-]{1,40}", prop::collection::vec(any::<u8>(), 0..600)), 0..8),
        ) {
            let mut block = Vec::new();
            connect_method(&mut block);
            authority(&mut block, &target);
            status(&mut block, code);
            for (name, value) in &fields {
                field(&mut block, name.as_bytes(), value);
            }
            let mut read = Vec::new();
            Decoder::new(0).decode(&block, |name, value| read.push((name.to_vec(), value.to_vec()))).unwrap();
            let mut want = vec![
                (b":method".to_vec(), b"CONNECT".to_vec()),
                (b":authority".to_vec(), target.into_bytes()),
                (b":status".to_vec(), code.to_string().into_bytes()),
            ];
            want.extend(fields.into_iter().map(|(name, value)| (name.into_bytes(), value)));
            prop_assert_eq!(read, want);
        }
    }
}
