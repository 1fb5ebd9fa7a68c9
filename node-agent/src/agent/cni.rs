//! The CNI plugin's questions, as the control thread answers them, and the file of decisions.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Agent;
use crate::cni::{self, Call, CniService, DecisionsWriter, install};
use crate::config::CniConfig;
use crate::exit::{Exit, Fatal, chain};

/// How often the file of decisions is held against the world.
const KEEP: Duration = Duration::from_secs(1);
/// Questions that are answered by one look at all pods.
const TOGETHER: usize = 64;

/// What is to be done for the plugin.
pub(super) enum CniEvent {
    /// Somebody asks.
    Calls(Vec<Call>),
    /// The file of decisions may be outdated.
    KeepDecisions,
}

/// The plugin's side door into the control thread; closed unless the agent serves CNI.
#[derive(Default)]
pub(super) struct Cni(Option<Open>);

struct Open {
    calls: mpsc::Receiver<Call>,
    decisions: DecisionsWriter,
    keep: Interval,
    /// Keeps the plugin's configuration in place.
    installer: Option<AbortHandle>,
}

impl Cni {
    /// What is to be done next; never, if CNI is not served.
    pub(super) async fn next(&mut self) -> CniEvent {
        let Some(open) = &mut self.0 else { return std::future::pending().await };
        let mut calls = Vec::new();
        tokio::select! {
            count = open.calls.recv_many(&mut calls, TOGETHER), if !open.calls.is_closed() => match count {
                0 => std::future::pending().await,
                _ => CniEvent::Calls(calls),
            },
            _ = open.keep.tick() => CniEvent::KeepDecisions,
        }
    }
}

impl Cni {
    /// Keeps the plugin's configuration in place no longer.
    pub(super) fn stop_installing(&mut self) {
        if let Some(installer) = self.0.as_ref().and_then(|open| open.installer.as_ref()) {
            installer.abort();
        }
    }
}

impl Agent {
    /// Begins to answer the plugin, now that the world is known and its pods are in.
    pub(super) fn serve_cni(&mut self) -> Result<(), Fatal> {
        let Some(config) = self.config.cni.clone() else { return Ok(()) };
        let socket = cni::socket_path(&self.config.run_dir);
        let listener = cni::bind(&socket)
            .map_err(|error| Fatal::new(Exit::Socket, format!("CNI socket {}", socket.display()), &error))?;
        let (service, calls) = CniService::new(self.config.node.clone(), self.shared.clone());
        tokio::task::spawn_local(service.serve(listener));
        let mut keep = interval(KEEP);
        keep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let decisions = DecisionsWriter::new(config.decisions.clone(), self.config.node.clone());
        self.cni = Cni(Some(Open { calls, decisions, keep, installer: None }));
        self.keep_decisions();
        self.install_cni(&config)
    }

    fn install_cni(&mut self, config: &CniConfig) -> Result<(), Fatal> {
        let Some(target) = config.install.clone() else { return Ok(()) };
        let binary = std::env::current_exe()
            .map_err(|error| Fatal::new(Exit::Runtime, "the agent's own file cannot be found", &error))?;
        install::copy_binary(&binary, &target.bin_dir)
            .map_err(|error| Fatal::new(Exit::Cni, "installing the CNI plugin", &error))?;
        let plugin = install::Settings {
            socket: cni::socket_path(&self.config.run_dir),
            decisions: config.decisions.clone(),
            never_enrol: self.config.never_enrol.clone(),
        };
        let installer = tokio::task::spawn_local(install::keep(target.conf_dir, plugin)).abort_handle();
        if let Some(open) = &mut self.cni.0 {
            open.installer = Some(installer);
        }
        Ok(())
    }

    /// Carries out what the plugin wants.
    pub(super) fn cni_event(&mut self, event: CniEvent) {
        match event {
            CniEvent::Calls(calls) => self.cni_calls(calls),
            CniEvent::KeepDecisions => self.keep_decisions(),
        }
    }

    fn keep_decisions(&mut self) {
        let current = self.board.notes().source_error.is_none();
        if let Some(open) = &mut self.cni.0 {
            open.decisions.keep(&self.shared.world.load(), current);
        }
    }

    /// Takes in everything that is told first, so that many pods at once cost one look at all of them.
    fn cni_calls(&mut self, calls: Vec<Call>) {
        for call in &calls {
            match call {
                Call::Enrol { uid, place, anew, .. } => {
                    self.keeper.places.put(uid, place);
                    if *anew {
                        self.keeper.try_now(uid);
                    }
                }
                Call::Remove { container, .. } => drop(self.keeper.places.retain(|known| known != container)),
                Call::Retain { containers } => {
                    self.keeper.places.retain(|known| containers.iter().any(|one| one == known));
                }
                Call::Check { .. } => {}
            }
        }
        let addressed = self.address_pods();
        self.reconcile();
        for call in calls {
            self.answer(call, addressed.as_ref().err());
        }
    }

    /// Lets everybody know the addresses of pods that are new here.
    fn address_pods(&mut self) -> Result<(), String> {
        let Some(world) = self.keeper.places.over(&self.shared.world.load()) else { return Ok(()) };
        if let Err(error) = self.keeper.capture.set_captured(world.captured()) {
            let error = chain(&error);
            tracing::error!(error, "captured ranges not updated; a new pod must wait");
            return Err(error);
        }
        self.shared.world.store(std::sync::Arc::new(world));
        Ok(())
    }

    fn answer(&self, call: Call, failed: Option<&String>) {
        // Whoever does not wait any more asks again.
        match call {
            Call::Enrol { uid, answer, .. } => {
                let taken = failed.map_or_else(|| self.keeper.taken(&uid), |why| Err(why.clone()));
                let _ = answer.send(taken);
            }
            Call::Check { uid, answer } => drop(answer.send(self.keeper.taken(&uid).map(drop))),
            Call::Remove { answer, .. } => drop(answer.send(())),
            Call::Retain { .. } => {}
        }
    }
}
