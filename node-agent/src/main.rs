//! `warren`: the node agent and the operator's command line.

mod agent;
mod budget;
mod ca_protocol;
mod capture;
mod cli;
mod cni;
mod command;
mod config;
mod context;
mod controller;
mod doctor;
mod ended;
mod exit;
mod http;
mod inbound;
mod judge;
mod kube_client;
mod mesh_node;
mod outbound;
mod pod_netns;
mod remote_ca;
mod shared;
mod status;
mod sys;
mod traces;
mod worker;
mod world_file;
mod world_kube;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use tokio::task::LocalSet;

use crate::cli::{AgentAction, AgentCommand, Cli, CniCommand, Command};
use crate::config::Config;
use crate::exit::{Exit, Fatal};

fn main() -> ExitCode {
    if is_plugin() {
        return cni::run_plugin();
    }
    let outcome = match Cli::parse().command {
        Command::Agent(agent) => match *agent {
            AgentCommand { action: Some(AgentAction::Cleanup(args)), .. } => command::cleanup::run(&args),
            AgentCommand { action: Some(AgentAction::MountBpffs), .. } => command::mount_bpffs::run(),
            AgentCommand { run: Some(args), .. } => run_agent(args),
            AgentCommand { action: None, run: None } => Err(Fatal {
                exit: Exit::Usage,
                message: "agent needs at least --node, --world and where SVIDs come from; see `warren agent --help`"
                    .to_owned(),
            }),
        },
        Command::Status(args) => block_on(command::status::run(args)),
        Command::Controller(args) => run_controller(*args),
        Command::Ca(ca) => block_on(Box::pin(command::ca::run(ca.action))),
        Command::Certs(certs) => block_on(command::certs::run(certs.action)),
        Command::Connections(args) => block_on(command::connections::run(args)),
        Command::Crds(crds) => block_on(command::crds::run(crds.action)),
        Command::Doctor(args) => block_on(Box::pin(command::doctor::run(args))),
        Command::Uninstall(args) => block_on(command::uninstall::run(args)),
        Command::Cni(CniCommand { action: None }) => return cni::run_plugin(),
        Command::Cni(CniCommand { action: Some(action) }) => command::cni::run(action),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Fatal { exit, message }) => {
            eprintln!("warren: {message}");
            ExitCode::from(exit as u8)
        }
    }
}

/// Runtimes start the plugin by its file's name, without arguments.
fn is_plugin() -> bool {
    let program = std::env::args_os().next().unwrap_or_default();
    Path::new(&program).file_name().is_some_and(|name| name == cni::PLUGIN)
}

fn run_agent(args: cli::AgentArgs) -> Result<(), Fatal> {
    log_to_stderr(&args.log, args.log_json);
    let config = Config::new(args).map_err(|error| Fatal::new(Exit::Usage, "configuration", &error))?;
    block_on(agent::run(config))
}

fn run_controller(args: cli::ControllerArgs) -> Result<(), Fatal> {
    log_to_stderr(&args.log, args.log_json);
    block_on(controller::run(args))
}

fn log_to_stderr(filter: &str, json: bool) {
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let colours = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    if json { builder.json().init() } else { builder.init() }
}

fn block_on<T>(work: impl Future<Output = Result<T, Fatal>>) -> Result<T, Fatal> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fatal::new(Exit::Runtime, "cannot start the runtime", &error))?;
    LocalSet::new().block_on(&runtime, work)
}
