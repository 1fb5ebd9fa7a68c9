//! Reading header blocks (RFC 7541 §6).

use super::huffman;
use super::table::{DynamicTable, Entry};

/// A block that cannot be decoded. The connection is lost with it: the tables of both ends no longer agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the header block cannot be decoded: {0}")]
pub struct HpackError(pub(in crate::http2) &'static str);

/// The decoder of one direction of a connection.
#[derive(Debug, Clone)]
pub struct Decoder {
    table: DynamicTable,
    /// What we allowed the peer's table to be (SETTINGS_HEADER_TABLE_SIZE).
    allowed: usize,
}

impl Decoder {
    /// A decoder whose peer may use a dynamic table of `allowed` octets.
    pub fn new(allowed: usize) -> Self {
        Self { table: DynamicTable::new(allowed), allowed }
    }

    /// Decodes a whole block, a field at a time, in order.
    pub fn decode(&mut self, block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<(), HpackError> {
        let mut input = Input(block);
        let mut begun = false;
        while let Some(first) = input.peek() {
            if first & 0xe0 == 0x20 {
                if begun {
                    return Err(HpackError("a table size update amid fields"));
                }
                self.resize(input.integer(5)?)?;
                continue;
            }
            begun = true;
            if first & 0x80 != 0 {
                let (name, value) = self.indexed(input.integer(7)?)?;
                field(name, value);
            } else if first & 0x40 != 0 {
                let entry = self.literal(&mut input, 6)?;
                field(&entry.name, &entry.value);
                self.table.add(entry);
            } else {
                // Without indexing and never indexed read alike.
                let entry = self.literal(&mut input, 4)?;
                field(&entry.name, &entry.value);
            }
        }
        Ok(())
    }

    fn resize(&mut self, size: usize) -> Result<(), HpackError> {
        if size > self.allowed {
            return Err(HpackError("a table larger than was allowed"));
        }
        self.table.set_limit(size);
        Ok(())
    }

    fn indexed(&self, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
        self.table.get(index).ok_or(HpackError("an index beyond the tables"))
    }

    fn literal(&self, input: &mut Input<'_>, prefix: u32) -> Result<Entry, HpackError> {
        let name = match input.integer(prefix)? {
            0 => input.text()?,
            index => self.indexed(index)?.0.to_vec(),
        };
        Ok(Entry { name, value: input.text()? })
    }
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn byte(&mut self) -> Result<u8, HpackError> {
        let (first, rest) = self.0.split_first().ok_or(HpackError("it ends early"))?;
        self.0 = rest;
        Ok(*first)
    }

    /// An integer with a prefix of so many bits (RFC 7541 §5.1). No sensible one exceeds 28 bits here.
    fn integer(&mut self, prefix: u32) -> Result<usize, HpackError> {
        let mask = (1usize << prefix) - 1;
        let mut value = usize::from(self.byte()?) & mask;
        if value < mask {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(HpackError("an integer without an end"))
    }

    /// A string (RFC 7541 §5.2).
    fn text(&mut self) -> Result<Vec<u8>, HpackError> {
        let coded = self.peek().ok_or(HpackError("it ends early"))? & 0x80 != 0;
        let length = self.integer(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(HpackError("it ends early"))?;
        self.0 = rest;
        if !coded {
            return Ok(text.to_vec());
        }
        let mut decoded = Vec::with_capacity(length * 2);
        huffman::decode(text, &mut decoded).map_err(|_| HpackError("a string is not Huffman code"))?;
        Ok(decoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, HpackError> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        decoder.decode(block, |name, value| fields.push(format!("{}={}", text(name), text(value))))?;
        Ok(fields)
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn requests_of_the_rfc_with_huffman_code_and_a_growing_table() {
        // RFC 7541 C.4.
        let mut decoder = Decoder::new(4096);
        let first = hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff");
        assert_eq!(
            decode(&mut decoder, &first).unwrap(),
            [":method=GET", ":scheme=http", ":path=/", ":authority=www.example.com"]
        );
        let second = hex("8286 84be 5886 a8eb 1064 9cbf");
        assert_eq!(
            decode(&mut decoder, &second).unwrap()[3..],
            [":authority=www.example.com", "cache-control=no-cache"]
        );
        let third = hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
        assert_eq!(
            decode(&mut decoder, &third).unwrap(),
            [
                ":method=GET",
                ":scheme=https",
                ":path=/index.html",
                ":authority=www.example.com",
                "custom-key=custom-value"
            ]
        );
    }

    #[test]
    fn responses_of_the_rfc_evict() {
        // RFC 7541 C.5, table of 256 octets.
        let mut decoder = Decoder::new(256);
        let first =
            hex("4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32
             3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d");
        assert_eq!(decode(&mut decoder, &first).unwrap().len(), 4);
        let second = hex("4803 3330 37c1 c0bf");
        assert_eq!(
            decode(&mut decoder, &second).unwrap(),
            [
                ":status=307",
                "cache-control=private",
                "date=Mon, 21 Oct 2013 20:13:21 GMT",
                "location=https://www.example.com"
            ]
        );
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        for (block, why) in [
            (&[0x80][..], "index 0"),
            (&[0xff, 0x7f], "beyond the tables"),
            (&[0x00, 0x05, b'a'], "ends early"),
            (&[0x82, 0x20], "a size update amid fields"),
            (&[0x3f, 0xff, 0xff, 0x7f], "too large a table"),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "an endless integer"),
            (&[0x00, 0x81, 0x00, 0x00], "bad Huffman padding"),
        ] {
            assert!(decode(&mut Decoder::new(4096), block).is_err(), "{why}");
        }
    }
}
