//! From what is missing to what must be done, in commands one could type.

use super::needs::{CrateInstall, Need, Remedy};

/// One installation step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Debian packages, all in one transaction.
    Packages(Vec<&'static str>),
    /// `cargo install`.
    Crate(CrateInstall),
    /// `rustup component add`.
    Components(&'static [&'static str]),
    /// `mount`.
    Mount { kind: &'static str, at: &'static str },
}

impl Action {
    /// Whether it changes the system, rather than the user's own directories.
    pub(crate) fn needs_root(&self) -> bool {
        matches!(self, Self::Packages(_) | Self::Mount { .. })
    }

    /// What one would type instead.
    pub(crate) fn commands(&self) -> Vec<String> {
        match self {
            Self::Packages(names) => {
                vec!["apt-get update".into(), format!("apt-get install --no-install-recommends {}", names.join(" "))]
            }
            Self::Crate(install) => vec![install_line(install)],
            Self::Components(names) => vec![format!("rustup component add {}", names.join(" "))],
            Self::Mount { kind, at } => vec![format!("mkdir -p {at}"), format!("mount -t {kind} {kind} {at}")],
        }
    }
}

fn install_line(install: &CrateInstall) -> String {
    let environment = match install.llvm {
        Some(prefix) => format!("LLVM_PREFIX={prefix} PATH={prefix}/bin:$PATH LIBRARY_PATH={prefix}/lib "),
        None => String::new(),
    };
    let words: Vec<&str> = ["cargo", "install", install.name, "--version", install.version]
        .into_iter()
        .chain(install.flags.iter().copied())
        .collect();
    environment + &words.join(" ")
}

/// Packages first, since crates and mounts build upon them.
pub(crate) fn plan(missing: &[&Need]) -> Vec<Action> {
    let mut packages: Vec<&'static str> = Vec::new();
    let mut rest = Vec::new();
    for need in missing {
        match need.remedy {
            Remedy::Packages(names) => packages.extend(names),
            Remedy::Crate(install) => {
                packages.extend(install.packages);
                rest.push(Action::Crate(install));
            }
            Remedy::Components(names) => rest.push(Action::Components(names)),
            Remedy::Mount { kind, at } => rest.push(Action::Mount { kind, at: at() }),
        }
    }
    packages.sort_unstable();
    packages.dedup();
    let first = (!packages.is_empty()).then_some(Action::Packages(packages));
    first.into_iter().chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::super::needs::NEEDS;
    use super::*;

    #[test]
    fn a_bare_machine_gets_packages_first_and_each_once() {
        let all: Vec<&Need> = NEEDS.iter().collect();
        let actions = plan(&all);
        let Action::Packages(names) = &actions[0] else { panic!("packages come first") };
        assert_eq!(names.iter().filter(|name| **name == "g++").count(), 1);
        assert!(names.contains(&"rustc-web") && names.contains(&"nginx-light"));
        assert_eq!(actions.iter().filter(|action| matches!(action, Action::Packages(_))).count(), 1);
    }

    #[test]
    fn nothing_missing_is_nothing_to_do() {
        assert_eq!(plan(&[]), vec![]);
    }

    #[test]
    fn the_linker_is_built_against_its_llvm() {
        let linker: Vec<&Need> = NEEDS.iter().filter(|need| need.what == "bpf-linker").collect();
        let commands: Vec<String> = plan(&linker).iter().flat_map(Action::commands).collect();
        assert!(commands.iter().any(|line| line.starts_with("LLVM_PREFIX=/usr/lib/llvm-22 ")), "{commands:?}");
    }
}
