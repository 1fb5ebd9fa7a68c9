//! The shared libraries of a program, as the dynamic linker finds them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

/// What a program or library loads, its interpreter included; nothing for a static one.
pub(super) fn of(file: &Path) -> Result<Vec<PathBuf>> {
    let output = process::command("ldd").arg(file).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        bail!("{} needs a library that is not installed: {}", file.display(), missing.trim());
    }
    Ok(text.lines().filter_map(named).collect())
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`
fn named(line: &str) -> Option<PathBuf> {
    let found = line.split_once("=>").map_or(line, |(_, path)| path);
    let path = found.trim().split(" (").next()?;
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// Where the dynamic linker has a library.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let listed = process::output(&mut ldconfig()).ok()?;
    let line = listed.lines().find(|line| line.trim_start().split(' ').next() == Some(name))?;
    named(line)
}

fn ldconfig() -> Command {
    let mut command = process::command("ldconfig");
    command.arg("-p");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_linker_are_read() {
        let path = |text: &str| named(text).map(|path| path.display().to_string());
        assert_eq!(path("\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)").as_deref(), Some("/lib/x/libc.so.6"));
        assert_eq!(path("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)").as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(path("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert_eq!(path("\tlibc.so.6 (libc6,x86-64) => /lib/x/libc.so.6").as_deref(), Some("/lib/x/libc.so.6"));
        assert_eq!(path("\tstatically linked"), None);
    }
}
