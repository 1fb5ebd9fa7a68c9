//! What may stand in which source file.

use std::fs;

use anyhow::Result;

use crate::outcome::Outcome;
use crate::process;
use crate::workspace::Workspace;

/// The only homes of `unsafe`.
const UNSAFE_HOMES: [&str; 3] = ["node-agent/src/sys/", "node-agent/src/capture/", "ebpf/"];
/// The only home of aya.
const AYA_HOME: &str = "node-agent/src/capture/";
const CORE: &str = "node-agent/core/src/";

/// Words by which core would reach out of its arguments.
const IMPURE: [&str; 9] = [
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "TcpStream",
    "UdpSocket",
    "rand::",
];

/// Where Container-Optimized OS keeps CNI plugins, on every machine that runs it.
const PRODUCT_PATH: &str = concat!("/home", "/kubernetes/bin");

/// Directories that exist on a builder's machine only. Written in two halves,
/// so that this file passes its own check.
const MACHINE_PATHS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/home", "/")];

/// No clock, sockets, files or environment in core, tests aside.
pub(crate) fn core_is_pure(workspace: &Workspace) -> Outcome {
    scan_rust(workspace, |path, line| {
        if !path.starts_with(CORE) {
            return None;
        }
        IMPURE.iter().find(|word| line.contains(**word)).map(|word| format!("`{word}` in core"))
    })
}

/// aya in capture only; the kernel side's aya_ebpf is another library.
pub(crate) fn aya_is_fenced(workspace: &Workspace) -> Outcome {
    scan_rust(workspace, |path, line| {
        let fenced = path.starts_with(AYA_HOME) || path.starts_with("ebpf/");
        (!fenced && (line.contains("aya::") || has_word(line, "aya"))).then(|| "aya outside capture".to_owned())
    })
}

/// `unsafe` in its three homes only, tests included.
pub(crate) fn unsafe_is_fenced(workspace: &Workspace) -> Outcome {
    scan_rust(workspace, |path, line| {
        let home = UNSAFE_HOMES.iter().any(|home| path.starts_with(home));
        (!home && has_word(line, "unsafe")).then(|| "unsafe outside its homes".to_owned())
    })
}

/// Committed text means the same on every machine.
pub(crate) fn no_machine_paths(workspace: &Workspace) -> Outcome {
    let found = files(workspace).map(|files| {
        let texts = files.into_iter().filter_map(|path| Some((fs::read_to_string(workspace.path(&path)).ok()?, path)));
        texts.flat_map(|(text, path)| machine_paths(&path, &text)).collect::<Vec<_>>()
    });
    match found {
        Ok(found) => Outcome::of_findings(&found),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

fn machine_paths(path: &str, text: &str) -> Vec<String> {
    let hit = |line: &str| {
        let line = line.replace(PRODUCT_PATH, "");
        MACHINE_PATHS.iter().any(|dir| line.contains(dir))
    };
    text.lines()
        .enumerate()
        .filter(|(_, line)| hit(line))
        .map(|(at, line)| format!("{path}:{}: {}", at + 1, line.trim()))
        .collect()
}

/// Applies a rule to every line of code of every Rust file; comments, string
/// literals and (in core, whose rules are about the product) unit tests are
/// not code.
fn scan_rust(workspace: &Workspace, rule: impl Fn(&str, &str) -> Option<String>) -> Outcome {
    let files = match files(workspace) {
        Ok(files) => files,
        Err(error) => return Outcome::Failed(format!("{error:#}")),
    };
    let mut found = Vec::new();
    for path in files.iter().filter(|path| path.ends_with(".rs")) {
        let Ok(text) = fs::read_to_string(workspace.path(path)) else { continue };
        let tests_count = !path.starts_with(CORE);
        let lines = text.lines().enumerate().take_while(|(_, line)| tests_count || line.trim() != "#[cfg(test)]");
        for (at, line) in lines {
            if let Some(finding) = rule(path, &code_of(line)) {
                found.push(format!("{path}:{}: {finding}: {}", at + 1, line.trim()));
            }
        }
    }
    Outcome::of_findings(&found)
}

/// The files of the tree that are committed or about to be.
fn files(workspace: &Workspace) -> Result<Vec<String>> {
    let mut git = process::command("git");
    git.current_dir(workspace.root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    Ok(process::output(&mut git)?.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
}

/// A line without its comment and without what stands between quotes.
fn code_of(line: &str) -> String {
    let mut code = String::with_capacity(line.len());
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if quoted => drop(characters.next()),
            '"' => quoted = !quoted,
            '/' if !quoted && characters.peek() == Some(&'/') => break,
            _ if quoted => {}
            _ => code.push(character),
        }
    }
    code
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|found| found == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_not_code() {
        assert_eq!(code_of("let a = \"unsafe // no\"; // unsafe").trim(), "let a = ;");
        assert_eq!(code_of(r#"say("\"unsafe"); x"#), "say(); x");
        assert!(has_word(&code_of("    unsafe { f() }"), "unsafe"));
        assert!(!has_word("#![deny(unsafe_op_in_unsafe_fn)]", "unsafe"));
    }

    #[test]
    fn machine_paths_are_found_by_line() {
        let text = format!("fine\nsee {}x\n", MACHINE_PATHS[0]);
        let found = machine_paths("README.md", &text);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("README.md:2:"));
    }
}
