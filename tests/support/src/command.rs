//! Running programs and reading what they say.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// A program that should have ended by now has hung.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs a program to its end; panics if it cannot be started, hangs, or fails.
#[track_caller]
pub fn run(program: &str, args: &[&str]) -> String {
    let output = output(Command::new(program).args(args));
    assert!(output.status.success(), "{program} {}: {}", args.join(" "), text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `ip` with a batch of lines on its standard input, inside the namespace named (`None`: this one).
#[track_caller]
pub fn ip_batch(netns: Option<&str>, lines: &str) {
    let mut command = Command::new("ip");
    if let Some(name) = netns {
        command.args(["-n", name]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("ip (Debian: iproute2) can be run");
    child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("ip reads its batch");
    let output = child.wait_with_output().expect("ip ends");
    assert!(output.status.success(), "ip -batch in {netns:?}: {}\n{lines}", text(&output));
}

/// Runs a command to its end, within a limit, and gives all of its output.
#[track_caller]
pub fn output(command: &mut Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}"));
    let (mut out, mut err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let out = std::thread::spawn(move || read_all(&mut out));
    let err = std::thread::spawn(move || read_all(&mut err));
    let status = wait_or_kill(&mut child, LIMIT).unwrap_or_else(|| panic!("{command:?} hangs"));
    Output { status, stdout: out.join().expect("reader"), stderr: err.join().expect("reader") }
}

/// Waits for a child of ours; kills it and gives `None` when the limit passes first.
pub fn wait_or_kill(child: &mut std::process::Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().expect("child can be waited for") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// Standard output and error of a program, for messages.
pub fn text(output: &Output) -> String {
    format!("{}: {}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The `warren` binary under test: `WARREN_BIN`, else the one built beside this test executable.
pub fn warren_bin() -> PathBuf {
    if let Some(path) = std::env::var_os("WARREN_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "WARREN_BIN names {}, which is not a file", path.display());
        return path;
    }
    let exe = std::env::current_exe().expect("own path");
    let found = exe.ancestors().skip(1).take(3).map(|dir| dir.join("warren")).find(|p| p.is_file());
    found.unwrap_or_else(|| {
        panic!("no `warren` binary near {}: run `cargo build -p warren-agent` or set WARREN_BIN", exe.display())
    })
}

fn read_all(from: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    bytes
}
