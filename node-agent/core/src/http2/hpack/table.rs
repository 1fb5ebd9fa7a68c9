//! The tables of HPACK (RFC 7541 §2.3): one that is given, one that grows and shrinks.

use std::collections::VecDeque;

/// The static table (RFC 7541 Appendix A); index 1 is the first.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// What an entry costs besides its octets (RFC 7541 §4.1).
const OVERHEAD: usize = 32;

/// One header field as octets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl Entry {
    fn size(&self) -> usize {
        self.name.len() + self.value.len() + OVERHEAD
    }
}

/// The dynamic table of one direction.
#[derive(Debug, Clone)]
pub(super) struct DynamicTable {
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
}

impl DynamicTable {
    pub(super) fn new(limit: usize) -> Self {
        Self { entries: VecDeque::new(), size: 0, limit }
    }

    /// Adds an entry; older ones, or even this one, go if there is no room (RFC 7541 §4.4).
    pub(super) fn add(&mut self, entry: Entry) {
        let size = entry.size();
        self.shrink_to(self.limit.saturating_sub(size));
        if size <= self.limit {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.shrink_to(limit);
    }

    fn shrink_to(&mut self, size: usize) {
        while self.size > size
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size();
        }
    }

    /// The field at an index of the joined address space (RFC 7541 §2.3.3).
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let index = index.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(index - STATIC.len())?;
        Some((&entry.name, &entry.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        Entry { name: name.into(), value: Vec::new() }
    }

    #[test]
    fn the_newest_comes_first_and_the_oldest_goes() {
        let mut table = DynamicTable::new(3 * (OVERHEAD + 1));
        for name in ["a", "b", "c", "d"] {
            table.add(entry(name));
        }
        assert_eq!(table.get(62).unwrap().0, b"d");
        assert_eq!(table.get(64).unwrap().0, b"b");
        assert_eq!(table.get(65), None);
        table.set_limit(OVERHEAD + 1);
        assert_eq!(table.get(63), None);
        table.add(entry(&"x".repeat(100)));
        assert_eq!(table.get(62), None, "too large an entry empties the table");
    }

    #[test]
    fn the_static_table_is_addressed_from_one() {
        let table = DynamicTable::new(0);
        assert_eq!(table.get(0), None);
        assert_eq!(table.get(1).unwrap(), (&b":authority"[..], &b""[..]));
        assert_eq!(table.get(8).unwrap(), (&b":status"[..], &b"200"[..]));
        assert_eq!(table.get(61).unwrap().0, b"www-authenticate");
    }
}
