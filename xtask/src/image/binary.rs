//! Warren as one static binary.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Arch;
use crate::exit::{CANNOT_INSTALL, Coded};
use crate::interrupt;
use crate::process;
use crate::programs;
use crate::workspace::Workspace;

/// ELF: a program header that names the dynamic linker.
const PT_INTERP: u32 = 3;

/// Builds it. The C library is glibc, whose own look-up of names wants shared
/// libraries even in a static program: Warren must not ask it for any.
pub(super) fn build(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    target_installed(workspace, arch)?;
    let mut cargo = process::command("cargo");
    cargo.current_dir(workspace.root()).args(["build", "--release", "--locked", "--package", "warren-agent"]);
    cargo.args(["--bin", "warren", "--target", arch.target()]);
    // Paths of the machine that builds would make other bytes on another one.
    let flags = ["-C".to_owned(), "target-feature=+crt-static".to_owned()].into_iter().chain(workspace.path_flags());
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.collect::<Vec<_>>().join("\u{1f}"));
    // Symbols stay, for what a crash prints; lines are in the ordinary build.
    cargo.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
    if arch != Arch::of_this_machine() {
        cross(&mut cargo, arch)?;
    }
    let log = workspace.logs().join(format!("image-{}.log", arch.oci()));
    process::step(&format!("static binary for {} (minutes)", arch.oci()), &log, &mut cargo)?;
    let binary = workspace.target().join(arch.target()).join("release/warren");
    must_be_static(&binary)?;
    if arch == Arch::of_this_machine() {
        process::output(process::command(&binary).arg("--version")).context("the static binary does not run")?;
    }
    Ok(binary)
}

/// Rust's own library for a foreign target comes by rustup or not at all.
fn target_installed(workspace: &Workspace, arch: Arch) -> Result<()> {
    let mut rustc = process::command("rustc");
    rustc.current_dir(workspace.root());
    let folder = process::output(rustc.args(["--print", "target-libdir", "--target", arch.target()]))?;
    if Path::new(folder.trim()).is_dir() {
        return Ok(());
    }
    let mut rustup = process::command("rustup");
    rustup.current_dir(workspace.root()).args(["target", "add", arch.target()]);
    let log = workspace.logs().join(format!("rustup-{}.log", arch.oci()));
    let added = process::step(&format!("rustup target add {}", arch.target()), &log, &mut rustup);
    interrupt::check()?;
    if let Err(error) = added {
        let message = format!(
            "no image for {}: Rust's library for {} is not installed, and rustup cannot bring it here ({error:#})",
            arch.oci(),
            arch.target()
        );
        return Err(Coded { code: CANNOT_INSTALL, message }.into());
    }
    Ok(())
}

/// Debian's cross compiler, for aws-lc and for linking.
fn cross(cargo: &mut std::process::Command, arch: Arch) -> Result<()> {
    let compiler = format!("{}-gcc", arch.gnu());
    if programs::find(&compiler).is_none() {
        let package = format!("gcc-{}", arch.gnu().replace('_', "-"));
        let message = format!(
            "no image for {}: {compiler} is not installed; please run:\n  apt-get install {package} libc6-dev-{}-cross",
            arch.oci(),
            arch.oci()
        );
        return Err(Coded { code: CANNOT_INSTALL, message }.into());
    }
    let target = arch.target().replace('-', "_");
    cargo.env(format!("CC_{target}"), &compiler);
    cargo.env(format!("CARGO_TARGET_{}_LINKER", target.to_uppercase()), &compiler);
    Ok(())
}

fn must_be_static(binary: &Path) -> Result<()> {
    let bytes = fs::read(binary).with_context(|| binary.display().to_string())?;
    match has_interpreter(&bytes) {
        Some(false) => Ok(()),
        Some(true) => bail!("{} is not static: it names a dynamic linker", binary.display()),
        None => bail!("{} is no 64-bit little-endian ELF file", binary.display()),
    }
}

/// Whether an ELF file asks for a dynamic linker.
fn has_interpreter(file: &[u8]) -> Option<bool> {
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let number = |at: usize, length: usize| -> Option<usize> {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(file.get(at..at.checked_add(length)?)?);
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for at in (0..count).map(|index| table + index * size) {
        if number(at, 4)? == PT_INTERP as usize {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_what_is_none() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(has_interpreter(&own), Some(true));
        assert_eq!(has_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(has_interpreter(&own[..60]), None);
    }

    #[test]
    fn a_static_program_is_known() {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (file[32], file[54], file[56]) = (64, 56, 1);
        assert_eq!(has_interpreter(&file), Some(false));
        file[64] = 3;
        assert_eq!(has_interpreter(&file), Some(true));
    }
}
