//! `warren ca status|rotate|backup|restore`: the controllers' authority, by way of the API server.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use warren_core::identity::TrustDomain;
use warren_mesh::identity::CaCertificate;

use crate::ca_protocol::{BundleNotes, RotationNotes};
use crate::cli::{CaBackupArgs, CaRestoreArgs, CaRotateArgs, CaStatusArgs, ClusterArgs};
use crate::controller::state::{CaState, first_sequence};
use crate::controller::store::{Store, StoreError, Wish};
use crate::exit::{Exit, Fatal};
use crate::kube_client::connect_as_kubectl;

/// How often a rotation is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a controller may take to begin with what it was asked for.
const BEGUN: Duration = Duration::from_secs(30);
/// Version of the file of a backup.
const FORMAT: u32 = 1;

fn refused(message: impl Into<String>) -> Fatal {
    Fatal { exit: Exit::Ca, message: message.into() }
}

fn failed(error: StoreError) -> Fatal {
    Fatal::new(Exit::Ca, "certificate authority", &error)
}

struct Cluster {
    store: Store,
    trust_domain: TrustDomain,
}

impl Cluster {
    async fn open(args: &ClusterArgs) -> Result<Self, Fatal> {
        let trust_domain = args.trust_domain.parse().map_err(|error| {
            Fatal::new(Exit::Usage, "--trust-domain", &(error as warren_core::identity::SpiffeIdError))
        })?;
        let client = connect_as_kubectl(args.kubeconfig.as_deref())
            .await
            .map_err(|error| Fatal::new(Exit::Usage, "--kubeconfig", &error))?;
        Ok(Self { store: Store::new(&client, &args.namespace), trust_domain })
    }

    async fn notes(&self) -> Result<BundleNotes, Fatal> {
        let notes = self.store.published().await.map_err(failed)?;
        notes.ok_or_else(|| refused("ConfigMap warren-trust-bundle is not there: no controller has made roots yet"))
    }

    async fn roots(&self) -> Result<Vec<CaCertificate>, Fatal> {
        let pem = self.store.published_roots().await.map_err(failed)?.unwrap_or_default();
        CaCertificate::all_from_pem(&pem, &self.trust_domain)
            .map_err(|error| Fatal::new(Exit::Ca, "ConfigMap warren-trust-bundle", &error))
    }
}

/// Prints what is trusted and who signs.
pub(super) async fn status(args: CaStatusArgs) -> Result<(), Fatal> {
    let cluster = Cluster::open(&args.cluster).await?;
    let notes = cluster.notes().await?;
    if args.json {
        println!("{}", serde_json::to_string(&notes).unwrap_or_default());
        return Ok(());
    }
    println!("trust domain  {}\nissuer        {}\nsequence      {}", notes.trust_domain, notes.issuer, notes.sequence);
    for (at, root) in cluster.roots().await?.iter().enumerate() {
        let until = humantime::format_rfc3339_seconds(root.not_after);
        println!("root          {} until {until}{}", root.subject, if at == 0 { ", signs" } else { "" });
    }
    match &notes.rotation {
        None => println!("rotation      none"),
        Some(rotation) => println!("rotation      {}", describe(rotation)),
    }
    Ok(())
}

fn describe(rotation: &RotationNotes) -> String {
    let mut text = format!("{}, step {} since {}", rotation.what, rotation.step, rotation.since);
    for waiting in &rotation.waiting {
        text.push_str(&format!("\n  waits for   {}: {}", waiting.node, waiting.reason));
    }
    text
}

/// Begins a rotation and follows it, or tells the one under way whom to wait for no longer.
pub(super) async fn rotate(args: CaRotateArgs) -> Result<(), Fatal> {
    let cluster = Cluster::open(&args.cluster).await?;
    let before = cluster.notes().await?;
    let wish = if args.force {
        let Some(rotation) = &before.rotation else { return Err(refused("no rotation is under way")) };
        let nodes: Vec<String> = rotation.waiting.iter().map(|waiting| waiting.node.clone()).collect();
        if nodes.is_empty() {
            return Err(refused("the rotation waits for no node"));
        }
        eprintln!("warren: cut off until their agents follow: {}", nodes.join(", "));
        Wish::Skip(nodes)
    } else {
        if let Some(rotation) = &before.rotation {
            return Err(refused(format!("a rotation is under way: {}", describe(rotation))));
        }
        Wish::Rotate(args.what)
    };
    cluster.store.ask(&wish).await.map_err(failed)?;
    let begun = SystemTime::now() + BEGUN;
    let mut said = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let now = cluster.notes().await?;
        let has_begun = now.sequence != before.sequence || args.force;
        match &now.rotation {
            Some(rotation) if has_begun => {
                let text = describe(rotation);
                if text != said {
                    println!("{text}");
                    said = text;
                }
                if args.no_wait {
                    return Ok(());
                }
            }
            None if has_begun => {
                println!("done: {} signs", now.issuer);
                return Ok(());
            }
            _ if SystemTime::now() > begun => {
                return Err(refused("no controller has begun with it: is one running, and may it? Its log says more"));
            }
            _ => {}
        }
    }
}

/// What a backup holds.
#[derive(Serialize, Deserialize)]
struct Backup {
    format: u32,
    trust_domain: String,
    /// The Secret's entries, as text.
    entries: BTreeMap<String, String>,
}

/// Writes the Secret to a file.
pub(super) async fn backup(args: CaBackupArgs) -> Result<(), Fatal> {
    let cluster = Cluster::open(&args.cluster).await?;
    let stored = cluster.store.read().await.map_err(failed)?;
    let data = stored.data.ok_or_else(|| refused("Secret warren-ca is not there: there is nothing to back up"))?;
    CaState::read(&data, &cluster.trust_domain, SystemTime::now())
        .map_err(|error| Fatal::new(Exit::Ca, "Secret warren-ca", &error))?;
    let entries =
        data.into_iter().map(|(name, ByteString(bytes))| (name, String::from_utf8_lossy(&bytes).into_owned()));
    let backup = Backup { format: FORMAT, trust_domain: cluster.trust_domain.to_string(), entries: entries.collect() };
    let text = serde_json::to_string_pretty(&backup).unwrap_or_default() + "\n";
    let written = if args.out == Path::new("-") {
        std::io::stdout().write_all(text.as_bytes())
    } else {
        // Never over another backup.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.out);
        file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
    };
    written.map_err(|error| Fatal::new(Exit::Ca, format!("--out {}", args.out.display()), &error))
}

/// Puts a backup back.
pub(super) async fn restore(args: CaRestoreArgs) -> Result<(), Fatal> {
    let cluster = Cluster::open(&args.cluster).await?;
    let wrong = |error: &dyn std::error::Error| Fatal::new(Exit::Ca, args.file.display().to_string(), error);
    let mut text = String::new();
    let read = if args.file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(&args.file).map(|read| text = read)
    };
    read.map_err(|error| wrong(&error))?;
    let backup: Backup = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
    if backup.format > FORMAT || backup.trust_domain != cluster.trust_domain.as_str() {
        return Err(refused(format!(
            "{}: a backup of format {} of trust domain {}; wanted is format {FORMAT} of {}",
            args.file.display(),
            backup.format,
            backup.trust_domain,
            cluster.trust_domain
        )));
    }
    let now = SystemTime::now();
    let data = backup.entries.into_iter().map(|(name, text)| (name, ByteString(text.into_bytes()))).collect();
    let (mut state, _) = CaState::read(&data, &cluster.trust_domain, now).map_err(|error| wrong(&error))?;
    let stored = cluster.store.read().await.map_err(failed)?;
    if stored.data.is_some() && !args.replace {
        return Err(refused("Secret warren-ca is there already; --replace replaces it, and its keys are gone then"));
    }
    let known = state.roots(&cluster.trust_domain).map_err(|error| wrong(&error))?;
    let lost: Vec<String> =
        cluster.roots().await?.into_iter().filter(|root| !known.contains(root)).map(|root| root.subject).collect();
    if !lost.is_empty() && !args.force {
        return Err(refused(format!(
            "pods may have SVIDs of {}, which the backup does not know: they are cut off until they are renewed; --force \
             does it nevertheless",
            lost.join(", ")
        )));
    }
    let published = cluster.store.published().await.map_err(failed)?.map_or(0, |notes| notes.sequence);
    state.sequence = first_sequence(now).max(published + 1);
    cluster.store.write(&state, &stored).await.map_err(failed)?;
    println!("restored; the controllers take it over within moments");
    Ok(())
}
