//! The kernel's own description of its types: as much of it as it takes to find where a member of a structure is.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel shows it.
const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;

/// Why a member could not be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BtfError {
    /// The kernel shows no description.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It is not in the form that this reads.
    #[error("the kernel's type information is not readable at byte {0}")]
    Form(usize),
    /// This kernel's sockets have no such member.
    #[error("this kernel has no {0}")]
    Missing(String),
}

const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// Name, description, and size or type.
const HEAD: usize = 12;
/// A member: name, type, offset.
const MEMBER: usize = 12;

/// The kernel's types.
pub(super) struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    /// Where each type is, in bytes; type 0 is `void`.
    types: Vec<usize>,
}

impl Btf {
    /// Those of the running kernel.
    pub(super) fn of_the_kernel() -> Result<Self, BtfError> {
        let path = Path::new(PATH);
        let bytes = fs::read(path).map_err(|source| BtfError::Read { path: path.to_owned(), source })?;
        Self::parse(bytes)
    }

    fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let mut this = Self { bytes, strings: 0, types: vec![0] };
        if this.word(0)? & 0xffff != u32::from(MAGIC) {
            return Err(BtfError::Form(0));
        }
        let header = this.word(4)? as usize;
        let mut at = header + this.word(8)? as usize;
        let end = at + this.word(12)? as usize;
        this.strings = header + this.word(16)? as usize;
        while at < end {
            this.types.push(at);
            let (kind, count) = this.kind(at)?;
            at += HEAD + tail(kind, count).ok_or(BtfError::Form(at))?;
        }
        Ok(this)
    }

    /// Where a member is, in bytes from the beginning of the structure, by the path of its name.
    pub(super) fn offset(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::Missing(format!("{structure}.{path}"));
        let mut at = self.structure(structure)?.ok_or_else(missing)?;
        let mut bits = 0;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let (offset, kind) = self.member(at, name)?.ok_or_else(missing)?;
            bits += offset;
            if names.peek().is_some() {
                at = self.resolve(kind)?;
            }
        }
        Ok(bits / 8)
    }

    fn structure(&self, name: &str) -> Result<Option<usize>, BtfError> {
        for at in &self.types[1..] {
            if self.kind(*at)?.0 == STRUCT && self.name(self.word(*at)?)? == name.as_bytes() {
                return Ok(Some(*at));
            }
        }
        Ok(None)
    }

    /// Offset in bits and type of a member, which may lie in a structure or union without a name.
    fn member(&self, at: usize, wanted: &str) -> Result<Option<(u32, u32)>, BtfError> {
        let (kind, count) = self.kind(at)?;
        if kind != STRUCT && kind != UNION {
            return Ok(None);
        }
        let with_sizes = self.word(at + 4)? >> 31 == 1;
        for index in 0..count {
            let member = at + HEAD + index * MEMBER;
            let (name, member_type, offset) = (self.word(member)?, self.word(member + 4)?, self.word(member + 8)?);
            let offset = if with_sizes { offset & 0x00ff_ffff } else { offset };
            if name == 0 {
                if let Some((inner, found)) = self.member(self.resolve(member_type)?, wanted)? {
                    return Ok(Some((offset + inner, found)));
                }
            } else if self.name(name)? == wanted.as_bytes() {
                return Ok(Some((offset, member_type)));
            }
        }
        Ok(None)
    }

    /// Where a type is, behind all its other names.
    fn resolve(&self, id: u32) -> Result<usize, BtfError> {
        let mut id = id;
        // Chains are short; a circle would be a broken description.
        for _ in 0..32 {
            let at = self.types.get(id as usize).copied().filter(|at| *at != 0).ok_or(BtfError::Form(0))?;
            match self.kind(at)?.0 {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => id = self.word(at + 8)?,
                _ => return Ok(at),
            }
        }
        Err(BtfError::Form(0))
    }

    fn kind(&self, at: usize) -> Result<(u32, usize), BtfError> {
        let info = self.word(at + 4)?;
        Ok((info >> 24 & 0x1f, (info & 0xffff) as usize))
    }

    fn name(&self, offset: u32) -> Result<&[u8], BtfError> {
        let at = self.strings + offset as usize;
        let rest = self.bytes.get(at..).ok_or(BtfError::Form(at))?;
        rest.split(|byte| *byte == 0).next().ok_or(BtfError::Form(at))
    }

    fn word(&self, at: usize) -> Result<u32, BtfError> {
        let bytes = self.bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes).ok_or(BtfError::Form(at))
    }
}

/// How many bytes follow the head of a type.
fn tail(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => 12 * count,
        ENUM | FUNC_PROTO => 8 * count,
        2 | 7 | TYPEDEF | VOLATILE | CONST | RESTRICT | 12 | 16 | TYPE_TAG => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts a description together.
    struct Made {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Made {
        fn new() -> Self {
            Self { types: Vec::new(), strings: vec![0] }
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend_from_slice(name.as_bytes());
            self.strings.push(0);
            at
        }

        fn words(&mut self, words: &[u32]) {
            self.types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        }

        fn structure(&mut self, name: &str, kind: u32, members: &[(&str, u32, u32)]) {
            let name = self.name(name);
            self.words(&[name, kind << 24 | members.len() as u32, 64]);
            for (name, member_type, bits) in members {
                let name = self.name(name);
                self.words(&[name, *member_type, *bits]);
            }
        }

        fn parse(self) -> Result<Btf, BtfError> {
            let mut bytes = Vec::new();
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            for word in [u32::from(MAGIC) | 1 << 16, 24, 0, types, types, strings] {
                bytes.extend(word.to_ne_bytes());
            }
            bytes.extend(self.types);
            bytes.extend(self.strings);
            Btf::parse(bytes)
        }
    }

    #[test]
    fn members_are_found_through_names_and_through_structures_without_one() {
        let mut made = Made::new();
        made.words(&[0, INT << 24, 4, 0]);
        made.structure("", UNION, &[("next", 1, 0), ("other", 1, 32)]);
        made.structure("queue", STRUCT, &[("", 2, 0), ("length", 1, 128)]);
        let name = made.name("queue_t");
        made.words(&[name, TYPEDEF << 24, 3]);
        made.structure("sock", STRUCT, &[("state", 1, 16), ("receive", 4, 256)]);
        let btf = made.parse().unwrap();
        assert_eq!(btf.offset("sock", "state").unwrap(), 2);
        assert_eq!(btf.offset("sock", "receive.length").unwrap(), 48);
        assert_eq!(btf.offset("sock", "receive.other").unwrap(), 36);
        assert!(
            matches!(btf.offset("sock", "receive.gone"), Err(BtfError::Missing(name)) if name == "sock.receive.gone")
        );
        assert!(matches!(btf.offset("sick", "state"), Err(BtfError::Missing(_))));
        assert!(matches!(btf.offset("sock", "state.more"), Err(BtfError::Missing(_))));
    }

    #[test]
    fn what_is_no_description_is_refused() {
        assert!(Btf::parse(b"not a description".to_vec()).is_err());
        let mut made = Made::new();
        made.words(&[0, 31 << 24, 0]);
        assert!(made.parse().is_err());
        assert!(Btf::parse(Vec::new()).is_err());
    }
}
