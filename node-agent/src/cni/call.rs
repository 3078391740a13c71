// SPDX-License-Identifier: Apache-2.0
//! A call as it came from the plugin, checked.

use std::path::PathBuf;

use isthmus_cni::SUPPORTED_VERSIONS;
use isthmus_cni::wire::{ROLE, ROLE_IPAM, Request};
use isthmus_cni_kit::config::net_conf::NetConf;
use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::names::{check_container_id, check_network_name};
use isthmus_cni_kit::plugin::Command;
use isthmus_cni_kit::version::Version;
use isthmus_compiler::PodName;
use isthmus_model::ids::LinkName;

use crate::addresses::AttachmentKey;

/// What is asked for.
#[derive(Debug)]
pub(crate) enum Call {
    Add(Target),
    Check(Target),
    Del(AttachmentKey),
    Gc,
    Status,
}

/// What our program was called as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// `isthmus-cni`.
    Cni,
    /// `isthmus-ipam`: another plugin asks for addresses.
    Ipam,
}

impl Role {
    pub(crate) fn of(request: &Request) -> Self {
        if request.var(ROLE) == Some(ROLE_IPAM) { Self::Ipam } else { Self::Cni }
    }
}

/// An interface in a container's namespace.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) key: AttachmentKey,
    pub(crate) ifname: LinkName,
    pub(crate) netns: PathBuf,
    /// If Kubernetes asks.
    pub(crate) pod: Option<PodName>,
}

impl Target {
    /// Namespace and name of the pod; empty outside Kubernetes.
    pub(super) fn pod_name(&self) -> (String, String) {
        self.pod.as_ref().map(|pod| (pod.namespace.clone(), pod.name.clone())).unwrap_or_default()
    }
}

impl Call {
    /// Reads the variables and the configuration of a request.
    pub(crate) fn parse(request: &Request) -> Result<(Self, NetConf), Error> {
        let command = request.var("CNI_COMMAND").unwrap_or_default();
        let config = read_config(&request.stdin, command)?;
        let call = match command {
            "ADD" => Self::Add(target(request)?),
            "CHECK" => Self::Check(target(request)?),
            "DEL" => Self::Del(key(request)?.0),
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            other => {
                return Err(Error::new(code::INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND {other:?}")));
            }
        };
        Ok((call, config))
    }
}

/// The configuration for a command. Code 6 for what is no JSON object, 1 for a version that is not spoken or lacks the command, 7
/// for a bad network name.
pub(crate) fn read_config(stdin: &[u8], command: &str) -> Result<NetConf, Error> {
    let config = NetConf::parse(stdin)?;
    let version = config.version();
    let since = command.parse::<Command>().map_or(Version::OLDEST, Command::since);
    let refused = if !SUPPORTED_VERSIONS.contains(&version.as_str()) {
        format!("cniVersion {version} is not supported")
    } else if version < since {
        format!("{command} does not exist in cniVersion {version}; it came with {since}")
    } else {
        check_network_name(config.name())?;
        return Ok(config);
    };
    let details = format!("supported: {}", SUPPORTED_VERSIONS.join(", "));
    Err(Error::new(code::INCOMPATIBLE_VERSION, refused).with_details(details))
}

fn target(request: &Request) -> Result<Target, Error> {
    let (key, ifname) = key(request)?;
    let netns = PathBuf::from(variable(request, "CNI_NETNS")?);
    if !netns.is_absolute() {
        let msg = format!("CNI_NETNS {:?} is no absolute path", netns.display());
        return Err(Error::new(code::INVALID_ENVIRONMENT, msg));
    }
    Ok(Target { key, ifname, netns, pod: pod(request.var("CNI_ARGS").unwrap_or_default()) })
}

fn key(request: &Request) -> Result<(AttachmentKey, LinkName), Error> {
    let container = variable(request, "CNI_CONTAINERID")?;
    if check_container_id(container).is_err() || container.len() > 128 {
        return Err(Error::new(code::INVALID_ENVIRONMENT, format!("invalid CNI_CONTAINERID {container:?}")));
    }
    let ifname = variable(request, "CNI_IFNAME")?;
    let link = ifname
        .parse()
        .map_err(|error| Error::new(code::INVALID_ENVIRONMENT, format!("CNI_IFNAME: {error}")))?;
    Ok((AttachmentKey { container: container.to_owned(), ifname: ifname.to_owned() }, link))
}

fn variable<'a>(request: &'a Request, name: &str) -> Result<&'a str, Error> {
    let missing =
        || Error::new(code::INVALID_ENVIRONMENT, format!("required env variables [{name}] missing"));
    request.var(name).ok_or_else(missing)
}

/// `K8S_POD_NAMESPACE`, `K8S_POD_NAME` and `K8S_POD_UID` out of `A=1;B=2`.
fn pod(arguments: &str) -> Option<PodName> {
    let value = |name: &str| {
        let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs
            .into_iter()
            .find(|(key, value)| *key == name && !value.is_empty())
            .map(|(_, value)| value.to_owned())
    };
    let (namespace, name) = (value("K8S_POD_NAMESPACE")?, value("K8S_POD_NAME")?);
    Some(PodName { namespace, name, uid: value("K8S_POD_UID") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(changes: &[(&str, &str)]) -> Request {
        let mut env = vec![
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"),
        ];
        env.retain(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
        env.extend(changes);
        Request {
            env: env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            stdin: br#"{"cniVersion":"1.1.0","name":"isthmus"}"#.to_vec(),
        }
    }

    #[test]
    fn a_pods_add_is_understood() {
        let (call, _) = Call::parse(&request(&[])).unwrap();
        let Call::Add(target) = call else { panic!("{call:?}") };
        assert_eq!(target.pod_name(), ("shop".into(), "web".into()));
        assert_eq!(target.key.container, "c1");
    }

    #[test]
    fn bad_variables_are_refused_with_code_4() {
        for bad in [
            ("CNI_CONTAINERID", "../c"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "far-too-long-a-name"),
            ("CNI_IFNAME", ".."),
            ("CNI_NETNS", "relative"),
            ("CNI_COMMAND", "MOVE"),
        ] {
            let error = Call::parse(&request(&[bad])).map(drop).unwrap_err();
            assert_eq!(error.code, code::INVALID_ENVIRONMENT, "{bad:?}: {error}");
        }
    }

    #[test]
    fn a_configuration_is_refused_that_has_no_such_command_or_no_good_name() {
        let code_of = |stdin: &str, command: &str| read_config(stdin.as_bytes(), command).unwrap_err().code;
        let named = |version: &str, name: &str| format!(r#"{{"cniVersion":"{version}","name":"{name}"}}"#);
        assert_eq!(code_of(r#"{"name":"pods"}"#, "ADD"), code::INCOMPATIBLE_VERSION, "it means the oldest");
        assert_eq!(code_of(&named("1.0.0", "pods"), "GC"), code::INCOMPATIBLE_VERSION);
        assert_eq!(code_of(&named("1.0.0", "pods"), "STATUS"), code::INCOMPATIBLE_VERSION);
        assert_eq!(code_of(&named("0.3.1", "pods"), "CHECK"), code::INCOMPATIBLE_VERSION);
        assert!(read_config(named("1.0.0", "pods").as_bytes(), "CHECK").is_ok());
        assert_eq!(code_of(&named("1.1.0", "../x"), "ADD"), code::INVALID_CONFIG);
        assert_eq!(code_of("", "ADD"), code::DECODING);
    }
}
