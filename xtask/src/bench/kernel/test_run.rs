//! Classifiers run by the kernel over frames of our making, again and again.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value as Json;

use super::super::rows::Rows;
use super::inventory::{Inventory, Program};
use crate::process;

/// The mark of captured connections, as agents set it unless told otherwise.
const MARK: u32 = 0x577;
/// Where `mark` stands in the kernel's `struct __sk_buff`.
const MARK_AT: usize = 8;
const REPEAT: &str = "1000000";
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A frame, and the mark that it bears.
struct Frame {
    name: &'static str,
    title: &'static str,
    mark: u32,
    flags: u8,
}

const FRAMES: [Frame; 3] = [
    Frame { name: "plain", title: "a frame without mark", mark: 0, flags: ACK },
    Frame { name: "captured", title: "a frame of a captured connection", mark: MARK, flags: ACK },
    Frame { name: "captured-syn", title: "a captured connection's SYN", mark: MARK, flags: SYN },
];

/// Runs each of the first node's classifiers over each frame.
pub(super) fn classifiers(inventory: &Inventory, round: usize, rows: &mut Rows) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("warren-test-run-{}", std::process::id()));
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let result = run_all(inventory, &directory, round, rows);
    fs::remove_dir_all(&directory).with_context(|| directory.display().to_string())?;
    result
}

fn run_all(inventory: &Inventory, directory: &Path, round: usize, rows: &mut Rows) -> Result<()> {
    let mut seen = Vec::new();
    for program in inventory.programs.iter().filter(|program| program.node == 0 && program.kind == "sched_cls") {
        if seen.contains(&program.name) {
            continue;
        }
        seen.push(program.name.clone());
        for frame in &FRAMES {
            let (row, title) = (format!("kernel.test-run.{}.{}", program.short(), frame.name), frame.title);
            let time = run(program, frame, directory).with_context(|| format!("{} over {title}", program.name))?;
            rows.add((&row, &format!("{}: {title}", program.short())), "warren", "ns", round, time);
        }
    }
    Ok(())
}

/// Nanoseconds of one run.
fn run(program: &Program, frame: &Frame, directory: &Path) -> Result<f64> {
    let (data, context) = (directory.join("data"), directory.join("context"));
    fs::write(&data, frame.bytes())?;
    fs::write(&context, frame.context())?;
    let mut command = process::command("bpftool");
    command.args(["-j", "prog", "run", "id", &program.id.to_string(), "data_in"]).arg(data);
    command.arg("ctx_in").arg(context).args(["repeat", REPEAT]);
    let said: Json = serde_json::from_str(&process::output(&mut command)?)?;
    said["duration"].as_f64().context("bpftool tells no duration")
}

impl Frame {
    /// Ethernet, IPv4, TCP, without payload.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        bytes.extend([0x08, 0x00]);
        bytes.extend([0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 88, 1, 11, 10, 88, 2, 13]);
        bytes.extend([0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        bytes
    }

    fn context(&self) -> Vec<u8> {
        let mut bytes = vec![0; MARK_AT];
        bytes.extend(self.mark.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_what_they_say() {
        let bytes = FRAMES[2].bytes();
        assert_eq!(bytes.len(), 14 + 20 + 20);
        assert_eq!((bytes[14] >> 4, bytes[14 + 9], bytes[14 + 20 + 13]), (4, 6, SYN));
        assert_eq!(FRAMES[2].context(), [0, 0, 0, 0, 0, 0, 0, 0, 0x77, 0x05, 0, 0]);
    }
}
