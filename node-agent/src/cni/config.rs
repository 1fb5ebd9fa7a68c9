//! The plugin's configuration, as the runtime hands it in on standard input: our own fields, strictly, and what the
//! specification puts beside them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use warren_core::enrolment::mode::NEVER_ENROLLED;

use super::error::{CniError, Code, VERSIONS};

/// Longest configuration that is read: a result with very many addresses is far below.
pub(super) const LONGEST_INPUT: usize = 1 << 20;

/// How long ADD may take, unless the configuration says otherwise.
const ADD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long ADD waits for the pod's SVID; connections are held after that.
const SVID_WAIT: Duration = Duration::from_secs(1);
/// How old the decisions may be by which pods start while the agent is away.
const DECISIONS_AGE: Duration = Duration::from_secs(3600);

/// What the plugin is told.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PluginConfig {
    /// Version of the specification that results are to have.
    #[serde(default = "oldest")]
    pub(super) cni_version: String,
    /// The agent's socket.
    pub(super) socket: PathBuf,
    /// The file of decisions.
    pub(super) decisions: PathBuf,
    #[serde(default = "add_timeout", with = "duration")]
    pub(super) timeout: Duration,
    #[serde(default = "svid_wait", with = "duration")]
    pub(super) svid_wait: Duration,
    #[serde(default = "decisions_age", with = "duration")]
    pub(super) decisions_age: Duration,
    /// Namespaces that are never enrolled, beside those that Warren itself never enrols: the issuers'.
    #[serde(default)]
    pub(super) never_enrol: Vec<String>,
    /// What the plugin before this one gave back.
    pub(super) prev_result: Option<Value>,
    /// Attachments that are to stay (GC).
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub(super) valid_attachments: Option<Vec<Attachment>>,
    #[serde(rename = "type")]
    _plugin: String,
    #[serde(default, rename = "name")]
    _name: Value,
    #[serde(default, rename = "runtimeConfig")]
    _runtime_config: Value,
    #[serde(default, rename = "capabilities")]
    _capabilities: Value,
    #[serde(default, rename = "args")]
    _args: Value,
    #[serde(default, rename = "dns")]
    _dns: Value,
    #[serde(default, rename = "cniVersions")]
    _versions: Value,
    #[serde(default, rename = "cni.dev/attachments")]
    _attachments: Value,
}

/// One attachment that GC leaves.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Attachment {
    #[serde(rename = "containerID")]
    pub(super) container_id: String,
}

/// The parts of a result that matter here.
#[derive(Debug, Default, Deserialize)]
struct Result1 {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Ip {
    address: String,
    interface: Option<usize>,
}

fn oldest() -> String {
    "0.3.1".to_owned()
}

fn add_timeout() -> Duration {
    ADD_TIMEOUT
}

fn svid_wait() -> Duration {
    SVID_WAIT
}

fn decisions_age() -> Duration {
    DECISIONS_AGE
}

mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|error| D::Error::custom(format!("{text:?}: {error}")))
    }
}

impl PluginConfig {
    /// Reads and checks it.
    pub(super) fn parse(input: &[u8]) -> Result<Self, CniError> {
        let value: Value = serde_json::from_slice(input)
            .map_err(|error| CniError::new(Code::Decode, "standard input is not a configuration", error.to_string()))?;
        let version = value.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0").to_owned();
        if !VERSIONS.contains(&version.as_str()) {
            let details = format!("it says {version}; this plugin speaks {}", VERSIONS.join(", "));
            return Err(CniError::new(Code::Version, "the configuration has another version of CNI", details));
        }
        let config: Self = serde_json::from_value(value).map_err(|error| {
            CniError::new(Code::Config, "the plugin's configuration cannot work", error.to_string())
        })?;
        for (field, path) in [("socket", &config.socket), ("decisions", &config.decisions)] {
            if !path.is_absolute() {
                let details = format!("{field} {}: not an absolute path", path.display());
                return Err(CniError::new(Code::Config, "the plugin's configuration cannot work", details));
            }
        }
        Ok(config)
    }

    /// Whether pods of the namespace are never enrolled, whoever asks.
    pub(super) fn is_never_enrolled(&self, namespace: &str) -> bool {
        NEVER_ENROLLED.contains(&namespace) || self.never_enrol.iter().any(|name| name == namespace)
    }

    /// The result of the plugins before, which ours leaves as it is.
    pub(super) fn result(&self) -> Result<&Value, CniError> {
        self.prev_result.as_ref().ok_or_else(|| {
            let details = "prevResult is missing: the plugin makes no interface; put it behind the one that does";
            CniError::new(Code::Config, "the plugin is not chained", details)
        })
    }

    /// The pod's addresses in that result: those of interfaces within the pod.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>, CniError> {
        let bad = |error: String| CniError::new(Code::Config, "prevResult cannot be read", error);
        let result: Result1 = serde_json::from_value(self.result()?.clone()).map_err(|error| bad(error.to_string()))?;
        let within = |ip: &&Ip| {
            let interface = ip.interface.and_then(|index| result.interfaces.get(index));
            interface.is_none_or(|interface| !interface.sandbox.is_empty())
        };
        let mut found = BTreeMap::new();
        for (order, ip) in result.ips.iter().filter(within).enumerate() {
            let text = ip.address.split('/').next().unwrap_or_default();
            let parsed: IpAddr = text.parse().map_err(|_| bad(format!("ips: {:?} is not an address", ip.address)))?;
            found.entry(parsed).or_insert(order);
        }
        let mut ips: Vec<(usize, IpAddr)> = found.into_iter().map(|(ip, order)| (order, ip)).collect();
        ips.sort_unstable();
        Ok(ips.into_iter().map(|(_, ip)| ip).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: &str = r#"{"cniVersion":"1.0.0","name":"n","type":"warren-cni","socket":"/s","decisions":"/d"}"#;

    fn with(field: &str) -> Result<PluginConfig, CniError> {
        PluginConfig::parse(PLAIN.replace(r#""socket""#, &format!("{field},\"socket\"")).as_bytes())
    }

    #[test]
    fn defaults_and_durations() {
        let config = PluginConfig::parse(PLAIN.as_bytes()).unwrap();
        assert_eq!((config.timeout, config.svid_wait), (ADD_TIMEOUT, SVID_WAIT));
        assert_eq!(with(r#""timeout":"250ms""#).unwrap().timeout, Duration::from_millis(250));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_code() {
        for (field, code) in [
            (r#""timeot":"1s""#, Code::Config),
            (r#""timeout":"soon""#, Code::Config),
            (r#""timeout":5"#, Code::Config),
        ] {
            assert_eq!(with(field).unwrap_err().code, code, "{field}");
        }
        let parse = |text: &str| PluginConfig::parse(text.as_bytes()).unwrap_err().code;
        assert_eq!(parse("{"), Code::Decode);
        assert_eq!(parse(&PLAIN.replace("1.0.0", "2.0.0")), Code::Version);
        assert_eq!(parse(&PLAIN.replace("\"/s\"", "\"s\"")), Code::Config);
    }

    #[test]
    fn fields_of_the_specification_are_no_surprise() {
        let fields = r#""capabilities":{},"runtimeConfig":{},"args":{},"dns":{},"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]"#;
        let config = with(fields).unwrap();
        assert_eq!(config.valid_attachments.unwrap()[0].container_id, "a");
    }

    #[test]
    fn addresses_are_those_within_the_pod() {
        let result = r#""prevResult":{"interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"/ns"}],
            "ips":[{"address":"10.0.0.5/24","interface":1},{"address":"192.0.2.1/24","interface":0},
                   {"address":"fd00::5/64","interface":1},{"address":"10.0.0.5/24"}]}"#;
        let ips: Vec<IpAddr> = vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        assert_eq!(with(result).unwrap().addresses().unwrap(), ips);
        assert_eq!(
            with(r#""prevResult":{"ips":[{"address":"x"}]}"#).unwrap().addresses().unwrap_err().code,
            Code::Config
        );
        assert_eq!(PluginConfig::parse(PLAIN.as_bytes()).unwrap().addresses().unwrap_err().code, Code::Config);
    }

    proptest! {
        #[test]
        fn no_input_is_more_than_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = PluginConfig::parse(&bytes);
        }

        #[test]
        fn no_result_is_more_than_an_error(address in ".{0,40}", index in any::<i64>()) {
            let result = serde_json::json!({"ips": [{"address": address, "interface": index}]});
            if let Ok(config) = with(&format!("\"prevResult\":{result}")) {
                let _ = config.addresses();
            }
        }
    }
}
