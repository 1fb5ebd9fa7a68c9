//! `warren ca`: the roots of a CA directory, here; a cluster's authority, in `ca_cluster`.

use std::path::Path;
use std::time::SystemTime;

use warren_core::identity::{SpiffeIdError, TrustDomain};
use warren_mesh::identity::ca_dir::{CaDir, CaError, RootInfo};

use super::ca_cluster;
use crate::cli::CaAction;
use crate::exit::{Exit, Fatal};

/// Carries out one action and prints its result.
pub(crate) async fn run(action: CaAction) -> Result<(), Fatal> {
    let done = match action {
        CaAction::Status(args) => return ca_cluster::status(args).await,
        CaAction::Rotate(args) => return ca_cluster::rotate(args).await,
        CaAction::Backup(args) => return ca_cluster::backup(args).await,
        CaAction::Restore(args) => return ca_cluster::restore(args).await,
        CaAction::Init(args) => {
            let trust_domain: TrustDomain = args.trust_domain.parse().map_err(|error: SpiffeIdError| {
                Fatal::new(Exit::Ca, format!("--trust-domain {}", args.trust_domain), &error)
            })?;
            CaDir::init(&args.ca_dir, &trust_domain, SystemTime::now()).and_then(|dir| show(&dir))
        }
        CaAction::AddRoot(args) => open(&args.ca_dir).and_then(|dir| {
            let root = dir.add_root(SystemTime::now())?;
            println!("added {}: trusted now; let it sign with `warren ca activate`", root.id);
            show(&dir)
        }),
        CaAction::Activate(args) => {
            open(&args.ca_dir).and_then(|dir| dir.activate(&args.root).and_then(|()| show(&dir)))
        }
        CaAction::RemoveRoot(args) => {
            open(&args.ca_dir).and_then(|dir| dir.remove_root(&args.root).and_then(|()| show(&dir)))
        }
        CaAction::List(args) => open(&args.ca_dir).and_then(|dir| show(&dir)),
    };
    done.map_err(|error| Fatal::new(Exit::Ca, "CA directory", &error))
}

fn open(path: &Path) -> Result<CaDir, CaError> {
    CaDir::open(path)
}

fn show(dir: &CaDir) -> Result<(), CaError> {
    println!("{:<24} {:<8} {:<22} SUBJECT", "ROOT", "SIGNS", "UNTIL");
    for RootInfo { id, subject, not_after, active, .. } in dir.list()? {
        let until = humantime::format_rfc3339_seconds(not_after);
        println!("{id:<24} {:<8} {until:<22} {subject}", if active { "yes" } else { "no" });
    }
    Ok(())
}
