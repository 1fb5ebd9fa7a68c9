//! Running other programs: with a clean environment, with progress, with
//! errors that say what was run.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::interrupt;
use crate::programs;

/// How often a step that writes to a file rather than a terminal says that it
/// is still alive.
const HEARTBEAT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);
/// Lines of a failed step's log that are shown.
const TAIL_LINES: usize = 40;

/// A command without what cargo and rustup put into the environment of the
/// programs they start: it would choose another compiler for nested builds.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_cargo_internal) {
            command.env_remove(name);
        }
    }
    if let Ok(path) = env::join_paths(programs::search_path()) {
        command.env("PATH", path);
    }
    command.stdin(Stdio::null());
    command
}

/// User's settings (CARGO_HOME, CARGO_TARGET_DIR, CARGO_NET_*, CARGO_BUILD_*,
/// CARGO_TERM_*, registries) stay.
fn is_cargo_internal(name: &str) -> bool {
    matches!(
        name,
        "CARGO"
            | "RUSTC"
            | "RUSTDOC"
            | "RUSTC_WRAPPER"
            | "RUSTC_WORKSPACE_WRAPPER"
            | "RUSTUP_TOOLCHAIN"
            | "RUST_RECURSION_COUNT"
            | "LD_LIBRARY_PATH"
            | "OUT_DIR"
            | "CARGO_ENCODED_RUSTFLAGS"
            | "CARGO_MANIFEST_DIR"
            | "CARGO_MANIFEST_PATH"
            | "CARGO_PRIMARY_PACKAGE"
            | "CARGO_CRATE_NAME"
            | "CARGO_BIN_NAME"
    ) || name.starts_with("CARGO_PKG_")
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| quoted(&arg.to_string_lossy())));
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs a command with its output shown.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let child = command.spawn().with_context(|| shown(command))?;
    let status = wait(child, || {})?;
    check(status, command)
}

/// Runs a command and returns what it wrote to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| shown(command))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}: {}", shown(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a command ends well; its output is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn check(status: ExitStatus, command: &Command) -> Result<()> {
    if status.success() { Ok(()) } else { bail!("{}: {status}", shown(command)) }
}

/// Runs a long command with its output in a log file, and shows title, elapsed
/// time and the newest line of the log meanwhile.
pub(crate) fn step(title: &str, log: &Path, command: &mut Command) -> Result<()> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let file = File::create(log).with_context(|| log.display().to_string())?;
    command.stdout(file.try_clone()?).stderr(file);
    let child = command.spawn().with_context(|| shown(command))?;
    let mut progress = Progress::start(title, log);
    let status = wait(child, || progress.say())?;
    progress.end(status.success());
    if !status.success() {
        eprint!("{}", tail(log));
    }
    check(status, command)
}

/// Waits for a child; a signal to this process is passed on to it.
fn wait(mut child: Child, mut meanwhile: impl FnMut()) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            interrupt::check()?;
            return Ok(status);
        }
        if interrupt::raised() {
            terminate(&child);
        }
        meanwhile();
        thread::sleep(POLL);
    }
}

struct Progress<'a> {
    title: &'a str,
    log: &'a Path,
    terminal: bool,
    started: Instant,
    said: Instant,
}

impl<'a> Progress<'a> {
    fn start(title: &'a str, log: &'a Path) -> Self {
        let now = Instant::now();
        let progress = Self { title, log, terminal: io::stderr().is_terminal(), started: now, said: now };
        if !progress.terminal {
            eprintln!("  {title} …");
        }
        progress
    }

    fn say(&mut self) {
        let elapsed = self.started.elapsed().as_secs();
        if self.terminal {
            eprint!("\r\x1b[K  {} … {elapsed} s  {}", self.title, last_line(self.log));
            io::stderr().flush().ok();
        } else if self.said.elapsed() >= HEARTBEAT {
            self.said = Instant::now();
            eprintln!("  {} … {elapsed} s  {}", self.title, last_line(self.log));
        }
    }

    fn end(&self, well: bool) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        let word = if well { "done" } else { "FAILED" };
        eprintln!("{clear}  {} … {word} ({:.1} s)", self.title, self.started.elapsed().as_secs_f32());
    }
}

/// Asks a child to end; one that has ended already is no error.
pub(crate) fn terminate(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}

fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().chars().take(80).collect()
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    let mut shown: String = lines[from..].iter().map(|line| format!("  | {line}\n")).collect();
    shown.push_str(&format!("  | (all of it: {})\n", log.display()));
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_typed() {
        let mut command = Command::new("ip");
        command.args(["netns", "add", "a b"]);
        assert_eq!(shown(&command), "ip netns add 'a b'");
    }

    #[test]
    fn what_cargo_set_is_removed_and_what_the_user_set_stays() {
        assert!(is_cargo_internal("RUSTUP_TOOLCHAIN"));
        assert!(is_cargo_internal("CARGO_PKG_NAME"));
        assert!(!is_cargo_internal("CARGO_HOME"));
        assert!(!is_cargo_internal("CARGO_TARGET_DIR"));
    }

    #[test]
    fn a_failed_command_names_itself() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 4"])).unwrap_err().to_string();
        assert!(error.contains("exit 4") && error.contains("broken"), "{error}");
    }
}
