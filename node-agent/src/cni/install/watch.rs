//! Keeps our configuration in step with the primary's, which is renamed and rewritten by whoever owns it, at boot above
//! all.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::files::config_files;
use super::{InstallError, Installed, Settings, install, uninstall};

/// How often the folder is looked at; what is seen twice alike has settled. Looking costs less than a descriptor and a
/// second way in for events that get lost.
const LOOK: Duration = Duration::from_millis(200);

/// A state of the folder: names, times and lengths.
type Seen = Vec<(PathBuf, Option<SystemTime>, u64)>;

/// Installs the configuration and keeps it so, for ever.
pub(crate) async fn keep(conf_dir: PathBuf, settings: Settings) {
    let (mut candidate, mut settled) = (None, None);
    let mut complaint = String::new();
    loop {
        let seen = look(&conf_dir);
        if seen == candidate && seen != settled {
            let error = step(&conf_dir, &settings).err().map(|error| error.to_string()).unwrap_or_default();
            if !error.is_empty() && error != complaint {
                tracing::error!(error, "the CNI plugin's configuration is not in step with the primary's");
            }
            // What failed is tried again; what was written by ourselves is not looked at again.
            settled = if error.is_empty() { look(&conf_dir) } else { None };
            complaint = error;
        }
        candidate = seen;
        tokio::time::sleep(LOOK).await;
    }
}

fn step(conf_dir: &std::path::Path, settings: &Settings) -> Result<(), InstallError> {
    match install(conf_dir, settings) {
        Ok(Installed::Unchanged) => Ok(()),
        Ok(Installed::Embeds(primary)) => {
            tracing::info!(primary = %primary.display(), "the CNI plugin is chained behind the primary's");
            Ok(())
        }
        // Without the primary, nobody would make interfaces: the runtime must see that there is no network.
        Err(error @ InstallError::NoPrimary(_)) => {
            uninstall(conf_dir)?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

fn look(conf_dir: &std::path::Path) -> Option<Seen> {
    let files = config_files(conf_dir).ok()?;
    let stamp = |path: PathBuf| {
        let meta = std::fs::metadata(&path).ok();
        let modified = meta.as_ref().and_then(|meta| meta.modified().ok());
        (path, modified, meta.map_or(0, |meta| meta.len()))
    };
    Some(files.into_iter().map(stamp).collect())
}
