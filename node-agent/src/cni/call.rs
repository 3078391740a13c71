// SPDX-License-Identifier: Apache-2.0
//! A call as it came from the plugin, checked.

use std::path::PathBuf;

use isthmus_cni::code;
use isthmus_cni::config::{NetworkConfig, is_identifier};
use isthmus_cni::error::CniError;
use isthmus_cni::wire::{ROLE, ROLE_IPAM, Request};
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
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) key: AttachmentKey,
    pub(crate) ifname: LinkName,
    pub(crate) netns: PathBuf,
    /// Namespace and name, if Kubernetes asks.
    pub(crate) pod: Option<(String, String)>,
}

impl Call {
    /// Reads the variables and the configuration of a request.
    pub(crate) fn parse(request: &Request) -> Result<(Self, NetworkConfig), CniError> {
        let command = request.var("CNI_COMMAND").unwrap_or_default();
        let config = NetworkConfig::parse(&request.stdin, command)?;
        let call = match command {
            "ADD" => Self::Add(target(request)?),
            "CHECK" => Self::Check(target(request)?),
            "DEL" => Self::Del(key(request)?.0),
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            other => {
                return Err(CniError::new(
                    code::INVALID_ENVIRONMENT,
                    format!("unknown CNI_COMMAND {other:?}"),
                ));
            }
        };
        Ok((call, config))
    }
}

fn target(request: &Request) -> Result<Target, CniError> {
    let (key, ifname) = key(request)?;
    let netns = PathBuf::from(variable(request, "CNI_NETNS")?);
    if !netns.is_absolute() {
        let msg = format!("CNI_NETNS {:?} is no absolute path", netns.display());
        return Err(CniError::new(code::INVALID_ENVIRONMENT, msg));
    }
    Ok(Target { key, ifname, netns, pod: pod(request.var("CNI_ARGS").unwrap_or_default()) })
}

fn key(request: &Request) -> Result<(AttachmentKey, LinkName), CniError> {
    let container = variable(request, "CNI_CONTAINERID")?;
    if !is_identifier(container) || container.len() > 128 {
        return Err(CniError::new(
            code::INVALID_ENVIRONMENT,
            format!("invalid CNI_CONTAINERID {container:?}"),
        ));
    }
    let ifname = variable(request, "CNI_IFNAME")?;
    let link = ifname
        .parse()
        .map_err(|error| CniError::new(code::INVALID_ENVIRONMENT, format!("CNI_IFNAME: {error}")))?;
    Ok((AttachmentKey { container: container.to_owned(), ifname: ifname.to_owned() }, link))
}

fn variable<'a>(request: &'a Request, name: &str) -> Result<&'a str, CniError> {
    let missing =
        || CniError::new(code::INVALID_ENVIRONMENT, format!("required env variables [{name}] missing"));
    request.var(name).ok_or_else(missing)
}

/// `K8S_POD_NAMESPACE` and `K8S_POD_NAME` out of `A=1;B=2`.
fn pod(arguments: &str) -> Option<(String, String)> {
    let value = |name: &str| {
        let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs
            .into_iter()
            .find(|(key, value)| *key == name && !value.is_empty())
            .map(|(_, value)| value.to_owned())
    };
    Some((value("K8S_POD_NAMESPACE")?, value("K8S_POD_NAME")?))
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
        assert_eq!(target.pod, Some(("shop".into(), "web".into())));
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
}
