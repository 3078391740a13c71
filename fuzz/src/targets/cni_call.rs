// SPDX-License-Identifier: Apache-2.0
//! A CNI call: the variables of the runtime, the arguments of Kubernetes and the configuration together.

use isthmus_cni::wire::Request;
use isthmus_cni_kit::error::code;
use isthmus_cni_kit::names::check_container_id;
use isthmus_cni_kit::version::Version;
use isthmus_compiler::{PodName, pod_link};

use super::cni_wire::add;
use crate::Seed;
use crate::addresses::AttachmentKey;
use crate::private::cni::call::{Call, Target};

/// A request without its length.
pub(crate) fn run(bytes: &[u8]) {
    let Ok(request) = Request::parse(bytes) else { return };
    match Call::parse(&request) {
        Ok((Call::Add(target) | Call::Check(target), _)) => target_holds(&request, &target),
        Ok((Call::Del(key), _)) => key_holds(&request, &key),
        Ok((Call::Gc | Call::Status, config)) => assert_eq!(config.version(), Version::V1_1_0),
        Err(error) => assert!(
            [code::DECODING, code::INCOMPATIBLE_VERSION, code::INVALID_CONFIG, code::INVALID_ENVIRONMENT]
                .contains(&error.code),
            "{error}"
        ),
    }
}

fn target_holds(request: &Request, target: &Target) {
    key_holds(request, &target.key);
    assert!(target.netns.is_absolute());
    assert_eq!(target.ifname.as_str(), target.key.ifname);
    if let Some(PodName { namespace, name, .. }) = &target.pod {
        let arguments = request.var("CNI_ARGS").expect("that is where it stands");
        assert!(!namespace.is_empty() && !name.is_empty());
        assert!(arguments.contains(&format!("K8S_POD_NAMESPACE={namespace}")));
        assert!(arguments.contains(&format!("K8S_POD_NAME={name}")));
    }
}

fn key_holds(request: &Request, key: &AttachmentKey) {
    assert!(check_container_id(&key.container).is_ok() && key.container.len() <= 128);
    assert_eq!(request.var("CNI_CONTAINERID"), Some(key.container.as_str()));
    assert!(!key.ifname.contains(['/', ' ', '\n']), "it is written into the link's alias");
    assert!(pod_link(&key.container, &key.ifname).as_str().len() <= 15);
}

pub(crate) fn seeds() -> Vec<Seed> {
    let with = |changes: &[(&str, &str)]| {
        let mut request = add();
        request.env.retain(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
        request.env.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        request.to_frame().split_off(4)
    };
    vec![
        ("add", with(&[])),
        ("check", with(&[("CNI_COMMAND", "CHECK")])),
        ("del", with(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")])),
        ("gc", with(&[("CNI_COMMAND", "GC")])),
        ("status", with(&[("CNI_COMMAND", "STATUS")])),
        ("no-pod", with(&[("CNI_ARGS", "K8S_POD_NAMESPACE=;;K8S_POD_NAME=x=y;=")])),
        ("container-upwards", with(&[("CNI_CONTAINERID", "../c")])),
        ("relative-netns", with(&[("CNI_NETNS", "run/netns/x")])),
    ]
}
