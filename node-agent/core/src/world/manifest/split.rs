//! Cuts a file into YAML documents, so that a syntax error in one document
//! costs only that one.

/// One document's text and where it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk<'a> {
    /// 1-based line of the file on which `text` starts.
    pub(super) line: usize,
    pub(super) text: &'a str,
}

/// The documents of a file. Chunks without content (comments, directives,
/// blank lines) are left out.
pub(super) fn documents(text: &str) -> Vec<Chunk<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut chunks = Vec::new();
    let mut start = (0, 1);
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let end = offset + line.len();
        if is_marker(line, "---") {
            push(&mut chunks, &text[start.0..offset], start.1);
            start = (offset, index + 1);
        } else if is_marker(line, "...") {
            push(&mut chunks, &text[start.0..offset], start.1);
            start = (end, index + 2);
        }
        offset = end;
    }
    push(&mut chunks, &text[start.0..], start.1);
    chunks
}

/// YAML lets no content start a line with a marker, not even a block scalar.
fn is_marker(line: &str, marker: &str) -> bool {
    let rest = line.strip_prefix(marker);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn push<'a>(chunks: &mut Vec<Chunk<'a>>, text: &'a str, line: usize) {
    let is_content = |line: &str| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        !line.is_empty() && !line.starts_with(['#', '%'])
    };
    if text.lines().any(is_content) {
        chunks.push(Chunk { line, text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(usize, &str)> {
        documents(text).iter().map(|c| (c.line, c.text)).collect()
    }

    #[test]
    fn lines_are_those_of_the_file() {
        let text = "# head\n---\na: 1\n---\n\n# empty\n--- # c\nb: 2\n...\nc: 3\n";
        assert_eq!(lines(text), [(2, "---\na: 1\n"), (7, "--- # c\nb: 2\n"), (10, "c: 3\n")]);
    }

    #[test]
    fn markers_need_a_blank_behind_them() {
        assert_eq!(lines("a: 1\n----\n---x\n").len(), 1);
        assert_eq!(lines("a: 1\r\n---\r\nb: 2").len(), 2);
        assert_eq!(lines("\u{feff}a: 1\n---"), [(1, "a: 1\n")]);
    }
}
