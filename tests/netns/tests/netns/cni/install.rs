//! The installer, by hand and by the agent.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use warren_test_support::command::{self, warren_bin};
use warren_test_support::{Lab, eventually};

use super::chain::{primary, start_agent};

struct Folders {
    conf: PathBuf,
    bin: PathBuf,
}

impl Folders {
    fn new(lab: &Lab) -> Self {
        // The plugin is a copy of the whole program: not in the lab's directory, which is in memory.
        let bin = std::env::temp_dir().join(format!("{}-cni-bin", lab.id()));
        let conf = lab.dir().join("net.d");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(&conf).unwrap();
        Self { conf, bin }
    }

    #[track_caller]
    fn warren(&self, verb: &str, rest: &[&str]) -> Output {
        let mut command = Command::new(warren_bin());
        command.args(["cni", verb, "--conf-dir"]).arg(&self.conf).arg("--bin-dir").arg(&self.bin).args(rest);
        command::output(&mut command)
    }

    fn plugins(&self) -> Option<Vec<String>> {
        let text = std::fs::read(self.conf.join("00-warren.conflist")).ok()?;
        let list: Value = serde_json::from_slice(&text).ok()?;
        Some(list["plugins"].as_array()?.iter().map(|one| one["type"].as_str().unwrap_or("?").to_owned()).collect())
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.bin);
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn by_hand_twice_and_away_again() {
    let lab = Lab::new(1);
    let folders = Folders::new(&lab);
    let none = folders.warren("install", &["--node", "n1"]);
    assert_eq!(none.status.code(), Some(8), "{}", command::text(&none));
    let before = primary(&lab).to_string();
    std::fs::write(folders.conf.join("10-net.conflist"), &before).unwrap();
    for _ in 0..2 {
        let output = folders.warren("install", &["--node", "n1", "--never-enrol", "spire"]);
        assert!(output.status.success(), "{}", command::text(&output));
        assert_eq!(folders.plugins().unwrap(), ["bridge", "warren-cni"]);
    }
    let mut version = Command::new(folders.bin.join("warren-cni"));
    let output = command::output(version.env("CNI_COMMAND", "VERSION"));
    let said: Value = serde_json::from_slice(&output.stdout).expect("the copy is the plugin");
    assert!(said["supportedVersions"].as_array().unwrap().contains(&"1.1.0".into()));
    let output = folders.warren("uninstall", &[]);
    assert!(output.status.success(), "{}", command::text(&output));
    assert_eq!(names(&folders.conf), ["10-net.conflist"]);
    assert_eq!(std::fs::read_to_string(folders.conf.join("10-net.conflist")).unwrap(), before);
    assert!(names(&folders.bin).is_empty());
}

#[test]
fn by_the_agent_which_follows_the_primary() {
    let mut lab = Lab::new(1);
    let _pod = lab.pod(0, "a");
    lab.manifest.write();
    let folders = Folders::new(&lab);
    let (conf, bin) = (folders.conf.to_str().unwrap().to_owned(), folders.bin.to_str().unwrap().to_owned());
    let mut agent = start_agent(&lab, &[("--cni-conf-dir", &conf), ("--cni-bin-dir", &bin)]);
    let list = primary(&lab).to_string();
    let becomes = |what: &str, wanted: Option<&[&str]>| {
        eventually(what, Duration::from_secs(10), || {
            let plugins = folders.plugins();
            let plugins = plugins.as_ref().map(|all| all.iter().map(String::as_str).collect::<Vec<_>>());
            (plugins.as_deref() == wanted).then_some(())
        });
    };
    std::fs::write(folders.conf.join("10-net.conflist"), &list).unwrap();
    becomes("installed once there is a primary", Some(&["bridge", "warren-cni"]));
    std::fs::rename(folders.conf.join("10-net.conflist"), folders.conf.join("05-renamed.conflist")).unwrap();
    std::fs::write(folders.conf.join("05-renamed.conflist"), list.replace("\"type\":\"bridge\"", "\"type\":\"ptp\""))
        .unwrap();
    becomes("the primary has another name and content", Some(&["ptp", "warren-cni"]));
    std::fs::remove_file(folders.conf.join("05-renamed.conflist")).unwrap();
    becomes("no primary, no network", None);
    agent.stop();
}
