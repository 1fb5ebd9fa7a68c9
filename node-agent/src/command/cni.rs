//! `warren cni install|uninstall|paths`: what an operator does by hand where the agent does not.

use std::path::{Path, PathBuf};

use crate::cli::CniAction;
use crate::cni::install::{
    Distribution, InstallError, Installed, Settings, Support, copy_binary, detect, install, remove_binary, uninstall,
};
use crate::cni::{default_decisions, socket_path};
use crate::config::{check_node, default_run_dir};
use crate::exit::{Exit, Fatal};

/// Carries out one action and says what was done.
pub(crate) fn run(action: CniAction) -> Result<(), Fatal> {
    match action {
        CniAction::Install(args) => {
            check_node(&args.node).map_err(|error| Fatal::new(Exit::Usage, "configuration", &error))?;
            let (conf_dir, bin_dir) = folders(args.conf_dir, args.bin_dir)?;
            let run_dir = args.run_dir.unwrap_or_else(|| default_run_dir(&args.node));
            let settings = Settings {
                socket: socket_path(&run_dir),
                decisions: args.decisions.unwrap_or_else(|| default_decisions(&args.node)),
                never_enrol: args.never_enrol,
            };
            install_all(&conf_dir, &bin_dir, &settings)
        }
        CniAction::Uninstall(args) => {
            let (conf_dir, bin_dir) = folders(args.conf_dir, args.bin_dir)?;
            // The configuration first: a runtime that finds it must find the plugin.
            let was = uninstall(&conf_dir).map_err(failed)?;
            remove_binary(&bin_dir).map_err(failed)?;
            println!(
                "warren: {}",
                if was { "removed; the primary's configuration counts again" } else { "nothing to remove" }
            );
            Ok(())
        }
        CniAction::Paths => {
            let found = distribution()?;
            println!("{}: configurations in {}, plugins in {}", found.name, found.conf_dir, found.bin_dir);
            match found.support {
                Support::Tested => println!("tested"),
                Support::Expected => println!("expected to work"),
                Support::Unsupported(why) => println!("unsupported: {why}"),
            }
            Ok(())
        }
    }
}

fn install_all(conf_dir: &Path, bin_dir: &Path, settings: &Settings) -> Result<(), Fatal> {
    let binary = std::env::current_exe()
        .map_err(|error| Fatal::new(Exit::Runtime, "this program's own file cannot be found", &error))?;
    let plugin = copy_binary(&binary, bin_dir).map_err(failed)?;
    match install(conf_dir, settings).map_err(failed)? {
        Installed::Embeds(primary) => {
            println!("warren: {} is chained behind what {} says", plugin.display(), primary.display());
        }
        Installed::Unchanged => println!("warren: {} is in place already", plugin.display()),
    }
    Ok(())
}

fn failed(error: InstallError) -> Fatal {
    Fatal::new(Exit::Cni, "CNI plugin", &error)
}

/// The folders given, or this distribution's.
fn folders(conf_dir: Option<PathBuf>, bin_dir: Option<PathBuf>) -> Result<(PathBuf, PathBuf), Fatal> {
    if let (Some(conf_dir), Some(bin_dir)) = (&conf_dir, &bin_dir) {
        return Ok((conf_dir.clone(), bin_dir.clone()));
    }
    let found = distribution()?;
    if let Support::Unsupported(why) = found.support {
        let message = format!("{}: {why}; name --conf-dir and --bin-dir to do it nevertheless", found.name);
        return Err(Fatal { exit: Exit::Cni, message });
    }
    Ok((conf_dir.unwrap_or_else(|| found.conf_dir.into()), bin_dir.unwrap_or_else(|| found.bin_dir.into())))
}

fn distribution() -> Result<Distribution, Fatal> {
    detect(Path::new("/")).ok_or_else(|| Fatal {
        exit: Exit::Cni,
        message: "no container runtime that is known was found here; name --conf-dir and --bin-dir".to_owned(),
    })
}
