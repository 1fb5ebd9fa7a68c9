//! The Huffman code of HPACK (RFC 7541 §5.2 and Appendix B).
//!
//! The code is canonical: among codes of one length, symbols are in order. So the lengths say everything.

/// Code length of each octet, in bits; the code of EOS (30 bits) is the only one left.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, //
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, //
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, //
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, //
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, //
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, //
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, //
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, //
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, //
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

const LONGEST: usize = 30;

/// For each length: the first code, and where its symbols begin in `SYMBOLS`.
struct Code {
    first: [u32; LONGEST + 1],
    offset: [u16; LONGEST + 1],
    count: [u16; LONGEST + 1],
    symbols: [u8; 256],
}

const CODE: Code = build();

const fn build() -> Code {
    let mut code =
        Code { first: [0; LONGEST + 1], offset: [0; LONGEST + 1], count: [0; LONGEST + 1], symbols: [0; 256] };
    let mut next = 0;
    let mut filled = 0;
    let mut length = 1;
    while length <= LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.offset[length] = filled as u16;
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                code.symbols[filled] = symbol as u8;
                filled += 1;
                next += 1;
                code.count[length] += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    code
}

/// The text is not a Huffman-coded string: EOS within it, or padding that is not the beginning of EOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadHuffman;

/// Decodes `text` onto the end of `out`.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> Result<(), BadHuffman> {
    let mut code: u32 = 0;
    let mut length = 0;
    for byte in text {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(byte >> bit & 1);
            length += 1;
            if length > LONGEST {
                return Err(BadHuffman);
            }
            let index = code.wrapping_sub(CODE.first[length]);
            if index < u32::from(CODE.count[length]) {
                out.push(CODE.symbols[usize::from(CODE.offset[length]) + index as usize]);
                code = 0;
                length = 0;
            }
        }
    }
    // What is left is padding: fewer than eight bits, all ones (RFC 7541 §5.2).
    if length < 8 && code == (1 << length) - 1 { Ok(()) } else { Err(BadHuffman) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &[u8]) -> Result<Vec<u8>, BadHuffman> {
        let mut out = Vec::new();
        decode(text, &mut out).map(|()| out)
    }

    #[test]
    fn the_examples_of_the_rfc() {
        // RFC 7541 C.4.1, C.4.3, C.6.1.
        assert_eq!(
            decoded(&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]).unwrap(),
            b"www.example.com"
        );
        assert_eq!(decoded(&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf]).unwrap(), b"custom-value");
        assert_eq!(decoded(&[0xae, 0xc3, 0x77, 0x1a, 0x4b]).unwrap(), b"private");
        assert_eq!(decoded(&[]).unwrap(), b"");
    }

    #[test]
    fn padding_must_begin_eos_and_eos_must_not_come() {
        assert_eq!(decoded(&[0b0000_0111]).unwrap(), b"0");
        assert_eq!(decoded(&[0b0000_0110]), Err(BadHuffman));
        assert_eq!(decoded(&[0xff]), Err(BadHuffman));
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(BadHuffman));
    }
}
