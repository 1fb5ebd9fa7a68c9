//! Everything that an agent leaves on its node, and its removal. The configuration of the CNI plugin goes first, so that
//! no pod starts by it any more; files go last.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::capture::{CaptureError, CleanupConfig, CleanupReport, cleanup, must_be_free};
use crate::cni::install::{remove_binary, uninstall};
use crate::config::{CniTarget, Config};

/// What is to be removed, and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Traces {
    /// The node.
    pub(crate) node: String,
    /// The agent's run directory.
    pub(crate) run_dir: PathBuf,
    /// The file of decisions, if the plugin was served.
    pub(crate) decisions: Option<PathBuf>,
    /// Where the plugin was installed.
    pub(crate) cni: Option<CniTarget>,
}

impl Traces {
    /// Those of the agent that has this configuration.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            node: config.node.clone(),
            run_dir: config.run_dir.clone(),
            decisions: config.cni.as_ref().map(|cni| cni.decisions.clone()),
            cni: config.cni.as_ref().and_then(|cni| cni.install.clone()),
        }
    }

    /// Takes the plugin out of the runtime's way. The configuration goes first: a runtime that finds it must find the
    /// plugin.
    pub(crate) fn remove_plugin(&self, report: &mut CleanupReport) {
        let Some(CniTarget { conf_dir, bin_dir }) = &self.cni else { return };
        // A folder that is not there holds nothing of ours.
        if conf_dir.exists() {
            match uninstall(conf_dir) {
                Ok(true) => report.removed.push(format!("the CNI plugin's configuration in {}", conf_dir.display())),
                Ok(false) => {}
                Err(error) => return report.left.push(error.to_string()),
            }
        }
        if let Err(error) = remove_binary(bin_dir) {
            report.left.push(error.to_string());
        }
    }

    /// Makes sure that no agent of the node runs.
    pub(crate) fn must_be_nobodys(&self) -> Result<(), CaptureError> {
        must_be_free(&self.run_dir, &self.node)
    }

    /// Removes everything; the agent that held the node's lock must have let it go.
    pub(crate) fn remove(&self) -> Result<CleanupReport, CaptureError> {
        let mut report = CleanupReport::default();
        self.remove_plugin(&mut report);
        let files = [self.run_dir.join("places.json"), crate::cni::socket_path(&self.run_dir)];
        let socket = crate::config::socket_path(&self.run_dir);
        for file in files.iter().chain(&self.decisions).chain([&socket]) {
            note(remove_file(file), file, &mut report);
        }
        if let Some(parent) = self.decisions.as_ref().and_then(|file| file.parent()) {
            // The folder is of this node alone; what else somebody put there stays.
            let _ = fs::remove_dir(parent);
        }
        let kernel = cleanup(&CleanupConfig {
            node: self.node.clone(),
            bpffs: Path::new("/sys/fs/bpf").to_owned(),
            run_dir: self.run_dir.clone(),
        })?;
        report.removed.extend(kernel.removed);
        report.left.extend(kernel.left);
        Ok(report)
    }
}

fn remove_file(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn note(done: io::Result<bool>, path: &Path, report: &mut CleanupReport) {
    match done {
        Ok(true) => report.removed.push(path.display().to_string()),
        Ok(false) => {}
        Err(error) => report.left.push(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_goes_and_what_is_others_stays() {
        let root = std::env::temp_dir().join(format!("warren-traces-{}", std::process::id()));
        let (conf_dir, bin_dir) = (root.join("conf"), root.join("bin"));
        for dir in [&conf_dir, &bin_dir] {
            fs::create_dir_all(dir).unwrap();
        }
        for file in ["conf/00-warren.conflist", "conf/10-pods.conflist", "bin/warren-cni", "bin/bridge"] {
            fs::write(root.join(file), "{}").unwrap();
        }
        let cni = Some(CniTarget { conf_dir, bin_dir });
        let traces = Traces { node: "n".into(), run_dir: root.join("run"), decisions: None, cni };
        let mut report = CleanupReport::default();
        traces.remove_plugin(&mut report);
        assert!(report.left.is_empty(), "{report:?}");
        let exists = |file: &str| root.join(file).exists();
        assert!(!exists("conf/00-warren.conflist") && !exists("bin/warren-cni"));
        assert!(exists("conf/10-pods.conflist") && exists("bin/bridge"));
        let mut again = CleanupReport::default();
        traces.remove_plugin(&mut again);
        assert_eq!(again, CleanupReport::default());
        fs::remove_dir_all(&root).unwrap();
    }
}
