//! The load generator's processes in the pods.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use warren_load::report::{Report, Served};

use crate::interrupt;
use crate::netlab::process::inside;
use crate::process;

const POLL: Duration = Duration::from_millis(5);
/// Longer than any run that says nothing.
const LIMIT: Duration = Duration::from_secs(180);

/// A process of the load generator; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Load {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Load {
    /// Starts it in a namespace.
    pub(super) fn start(program: &Path, netns: &Path, arguments: &[String]) -> Result<Self> {
        let mut command = inside(netns, program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| process::shown(&command))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("the load generator's output")?);
        Ok(Self { child, input, output })
    }

    /// Waits for its next line.
    pub(crate) fn line<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the load generator says {line:?}"))
    }

    /// Says something to it.
    pub(crate) fn tell(&mut self, word: &str) -> Result<()> {
        use std::io::Write;
        let input = self.input.as_mut().context("the load generator's input is closed")?;
        Ok(writeln!(input, "{word}")?)
    }

    /// Lets it end by itself and gives its last line.
    pub(crate) fn finish<T: DeserializeOwned>(mut self) -> Result<T> {
        self.input = None;
        let started = Instant::now();
        while self.child.try_wait()?.is_none() {
            interrupt::check()?;
            if started.elapsed() > LIMIT {
                bail!("the load generator does not end");
            }
            thread::sleep(POLL);
        }
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("the load generator ended with {text:?}"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a server and waits until it listens.
pub(super) fn serve(program: &Path, netns: &Path, listen: SocketAddr) -> Result<Load> {
    let mut server = Load::start(program, netns, &["serve".into(), "--listen".into(), listen.to_string()])?;
    let _ready: serde_json::Value = server.line().context("the load generator's server")?;
    Ok(server)
}

/// Ends a server; wrong bytes are an error.
pub(super) fn stop(server: Load) -> Result<Served> {
    let served: Served = server.finish()?;
    match served.errors.first() {
        None => Ok(served),
        Some(error) => bail!("the server received something wrong: {error}"),
    }
}

/// The report of a client that ended; what was wrong is an error.
pub(super) fn checked(report: Report) -> Result<Report> {
    match report.error {
        None => Ok(report),
        Some(error) => bail!("{error}"),
    }
}
