use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("warren-install-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn write(&self, name: &str, plugin: &str) {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"net","plugins":[{{"type":"{plugin}"}}]}}"#);
        fs::write(self.0.join(name), text).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn plugins(&self, name: &str) -> Vec<String> {
        let value: Value = serde_json::from_slice(&fs::read(self.0.join(name)).unwrap()).unwrap();
        value["plugins"].as_array().unwrap().iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }

    fn install(&self) -> Result<Installed, InstallError> {
        install(&self.0, &settings())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn settings() -> Settings {
    Settings { socket: "/run/s".into(), decisions: "/var/d".into(), never_enrol: vec!["spire".into()] }
}

#[test]
fn installed_twice_is_installed_once_and_uninstalled_is_as_before() {
    let dir = Scratch::new("twice");
    dir.write("10-net.conflist", "bridge");
    let before = fs::read(dir.0.join("10-net.conflist")).unwrap();
    assert_eq!(dir.install().unwrap(), Installed::Embeds(dir.0.join("10-net.conflist")));
    assert_eq!(dir.plugins("00-warren.conflist"), ["bridge", "warren-cni"]);
    assert_eq!(dir.install().unwrap(), Installed::Unchanged);
    assert_eq!(dir.plugins("00-warren.conflist"), ["bridge", "warren-cni"]);
    assert!(uninstall(&dir.0).unwrap());
    assert_eq!(dir.names(), ["10-net.conflist"]);
    assert_eq!(fs::read(dir.0.join("10-net.conflist")).unwrap(), before);
    assert!(!uninstall(&dir.0).unwrap());
}

#[test]
fn another_primary_or_another_name_of_it_is_followed() {
    let dir = Scratch::new("follow");
    dir.write("10-net.conflist", "bridge");
    dir.install().unwrap();
    dir.write("05-other.conflist", "ptp");
    assert_eq!(dir.install().unwrap(), Installed::Embeds(dir.0.join("05-other.conflist")));
    assert_eq!(dir.plugins("00-warren.conflist"), ["ptp", "warren-cni"]);
    fs::rename(dir.0.join("05-other.conflist"), dir.0.join("05-other.conflist.bak")).unwrap();
    assert_eq!(dir.install().unwrap(), Installed::Embeds(dir.0.join("10-net.conflist")));
    fs::rename(dir.0.join("10-net.conflist"), dir.0.join("00-net.conflist")).unwrap();
    dir.install().unwrap();
    assert_eq!(dir.names(), ["0-warren.conflist", "00-net.conflist", "05-other.conflist.bak"]);
    fs::rename(dir.0.join("00-net.conflist"), dir.0.join("0--net.conflist")).unwrap();
    assert!(matches!(dir.install(), Err(InstallError::NotFirst(_))));
}

#[test]
fn without_a_sound_primary_nothing_is_written_over() {
    let dir = Scratch::new("none");
    assert!(matches!(dir.install(), Err(InstallError::NoPrimary(_))));
    dir.write("10-net.conflist", "bridge");
    dir.install().unwrap();
    fs::write(dir.0.join("10-net.conflist"), "{\"cniVersion\":").unwrap();
    assert!(matches!(dir.install(), Err(InstallError::Primary { .. })));
    assert_eq!(dir.plugins("00-warren.conflist"), ["bridge", "warren-cni"], "the last good one stays");
}

#[test]
fn what_only_root_may_read_stays_so() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Scratch::new("mode");
    dir.write("10-net.conflist", "bridge");
    fs::set_permissions(dir.0.join("10-net.conflist"), fs::Permissions::from_mode(0o600)).unwrap();
    dir.install().unwrap();
    assert_eq!(fs::metadata(dir.0.join("00-warren.conflist")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_running_installer_follows_the_primary() {
    let dir = Scratch::new("watch");
    dir.write("10-net.conflist", "bridge");
    let seen = |what: &'static [&'static str]| {
        let path = dir.0.join("00-warren.conflist");
        move || match fs::read(&path) {
            Ok(text) => what.iter().all(|word| String::from_utf8_lossy(&text).contains(word)),
            Err(_) => what.is_empty(),
        }
    };
    let check = async {
        let until = |done: Box<dyn Fn() -> bool>| async move {
            while !done() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        until(Box::new(seen(&["bridge", "warren-cni"]))).await;
        fs::rename(dir.0.join("10-net.conflist"), dir.0.join("10-net.conflist.bak")).unwrap();
        until(Box::new(seen(&[]))).await;
        dir.write("20-new.conflist", "ptp");
        until(Box::new(seen(&["ptp", "warren-cni"]))).await;
        fs::remove_file(dir.0.join("00-warren.conflist")).unwrap();
        until(Box::new(seen(&["ptp", "warren-cni"]))).await;
    };
    tokio::select! {
        () = keep(dir.0.clone(), settings()) => {}
        done = tokio::time::timeout(std::time::Duration::from_secs(20), check) => done.expect("followed in time"),
    }
}
