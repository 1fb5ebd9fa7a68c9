//! The load generator's command line. Each run prints one JSON object when it
//! ends; a server, and a client that holds connections, another one when ready.
//!
//! Exit codes: 0 measured; 1 something was wrong, which the object says; 2 usage.
#![forbid(unsafe_code)]

use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::json;
use warren_load::client::{self, Connects, Idle, RoundTrips, Streams, Window};
use warren_load::report::Report;
use warren_load::server::Server;
use warren_load::{cpu, delay, raise_open_files};

#[derive(Debug, Parser)]
#[command(name = "warren-load", about = "TCP load that checks every byte it receives")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve all kinds of clients until standard input ends.
    Serve {
        /// Where to listen.
        #[arg(long, default_value = "[::]:8080")]
        listen: SocketAddr,
    },
    /// Round trips on standing connections.
    Rr {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        time: Time,
        /// Connections, each with one message on its way.
        #[arg(long, default_value_t = 1)]
        connections: usize,
    },
    /// Connect, one round trip, closed by the server; again and again.
    Connect {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        time: Time,
        /// Connections open at any time.
        #[arg(long, default_value_t = 1)]
        at_once: usize,
        /// End after so many connections rather than after a time.
        #[arg(long)]
        count: Option<u64>,
        /// So many destinations in turn, counted up from the address of --to.
        #[arg(long, default_value_t = 1)]
        spread: u32,
    },
    /// Bytes as fast as they go.
    Stream {
        /// The server.
        #[arg(long)]
        to: SocketAddr,
        #[command(flatten)]
        time: Time,
        /// Streams, each on a connection of its own.
        #[arg(long, default_value_t = 1)]
        streams: usize,
        /// Which way, as the client sees it.
        #[arg(long, default_value = "up")]
        direction: Way,
    },
    /// Hold connections until standard input ends; a line `prove` asks for a round trip on each.
    Idle {
        #[command(flatten)]
        target: Target,
        /// Connections to hold.
        #[arg(long)]
        connections: usize,
        /// Connections being made at once.
        #[arg(long, default_value_t = 64)]
        at_once: usize,
        /// Seconds without progress that end the run.
        #[arg(long, default_value_t = 15.0)]
        patience: f64,
        /// Hold what was reached when there is no more progress.
        #[arg(long)]
        as_many_as_possible: bool,
    },
    /// Be a link between two network namespaces that delays every packet, until standard input ends.
    Delay {
        /// The namespaces' paths; each gets a TUN interface.
        #[arg(long, num_args = 2, required = true)]
        between: Vec<PathBuf>,
        /// The name of the interfaces.
        #[arg(long)]
        name: String,
        /// Milliseconds each way.
        #[arg(long)]
        milliseconds: f64,
    },
}

#[derive(Debug, Clone, Copy, Args)]
struct Target {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// Bytes of a message and of its answer.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=131_072))]
    size: u32,
    /// Count connections that fail, and go on; wrong bytes still end the run.
    #[arg(long)]
    allow_failures: bool,
}

#[derive(Debug, Clone, Copy, Args)]
struct Time {
    /// Seconds that are measured.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Seconds before that.
    #[arg(long, default_value_t = 0.2)]
    warmup: f64,
    /// Seconds without progress that end the run.
    #[arg(long, default_value_t = 15.0)]
    patience: f64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    Up,
    Down,
    Both,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let report = Report { error: Some(format!("{error:#}")), ..Report::default() };
            let _ = say(&report);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    raise_open_files()?;
    match command {
        Command::Serve { listen } => serve(listen),
        Command::Rr { target, time, connections } => {
            let Target { to, size, allow_failures } = target;
            let size = size as usize;
            say(&client::round_trips(&RoundTrips { to, size, connections, allow_failures, window: time.window() })?)
        }
        Command::Connect { target, time, at_once, count, spread } => {
            let Target { to, size, allow_failures } = target;
            let (size, window) = (size as usize, time.window());
            say(&client::connect(&Connects { to, spread, size, at_once, count, allow_failures, window })?)
        }
        Command::Stream { to, time, streams, direction } => {
            let direction = match direction {
                Way::Up => client::Direction::Up,
                Way::Down => client::Direction::Down,
                Way::Both => client::Direction::Both,
            };
            say(&client::stream(&Streams { to, streams, direction, window: time.window() })?)
        }
        Command::Delay { between, name, milliseconds } => delay(&between, &name, milliseconds),
        Command::Idle { target, connections, at_once, patience, as_many_as_possible } => {
            let patience = Duration::from_secs_f64(patience);
            let Target { to, size, .. } = target;
            hold(&Idle { to, connections, at_once, size: size as usize, patience, as_many_as_possible })
        }
    }
}

/// Carries packets on threads of its own; the process's end is theirs.
fn delay(between: &[PathBuf], name: &str, milliseconds: f64) -> Result<()> {
    let [a, b] = between else { anyhow::bail!("a link has two ends") };
    delay::link([a, b], name, Duration::from_secs_f64(milliseconds / 1000.0))?;
    say(&json!({"ready": name}))?;
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}

impl Time {
    fn window(self) -> Window {
        Window {
            warmup: Duration::from_secs_f64(self.warmup),
            measured: Duration::from_secs_f64(self.seconds),
            patience: Duration::from_secs_f64(self.patience),
        }
    }
}

fn serve(listen: SocketAddr) -> Result<()> {
    let server = Server::bind(listen)?;
    server.stopper().stop_at_end_of_input();
    say(&json!({"ready": server.address()?.to_string()}))?;
    say(&server.run()?)
}

fn hold(load: &Idle) -> Result<()> {
    let (begun, busy) = (Instant::now(), cpu::busy_seconds()?);
    let mut held = client::idle(load)?;
    say(&json!({"ready": held.connections()}))?;
    for line in io::stdin().lock().lines() {
        if line?.trim() == "prove" {
            held.prove()?;
            say(&json!({"proved": held.connections()}))?;
        }
    }
    say(&Report {
        mode: "idle".into(),
        seconds: begun.elapsed().as_secs_f64(),
        operations: held.connections() as u64,
        bytes: held.received(),
        cpu_seconds: cpu::busy_seconds()? - busy,
        ..Report::default()
    })
}

fn say(what: &impl serde::Serialize) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, what)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}
