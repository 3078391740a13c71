// SPDX-License-Identifier: Apache-2.0
//! What an API error means to the person at the keyboard, and the way out.

use anyhow::Error;

/// Turns an error of the API into one that names what was tried and what to do.
pub(crate) fn explain(error: kube::Error, tried: &str) -> Error {
    let hint = match &error {
        kube::Error::Api(status) => match status.code {
            // An unknown kind has no details; an absent object names itself there.
            404 if status.details.as_ref().is_none_or(|details| details.name.is_empty()) => {
                "Isthmus is not installed in this cluster; install it with `kubectl apply --server-side -k config/default`".to_owned()
            }
            401 => "the credentials of this context are not accepted; renew them in the kubeconfig".to_owned(),
            403 if status.message.contains("pods/exec") => {
                format!("{}; ask for a role that allows get and create on pods/exec there", status.message)
            }
            403 => format!("{}; ask for the cluster role isthmus-admin or another that allows it", status.message),
            _ => status.message.clone(),
        },
        kube::Error::Service(_) | kube::Error::HyperError(_) => {
            format!("the API server does not answer ({}); is the context the right one?", innermost(&error))
        }
        other => other.to_string(),
    };
    Error::msg(format!("{tried}: {hint}"))
}

/// Whether the API says that the object, or its kind, is not there.
pub(crate) fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// The cause below all causes: the one that says what happened.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;
    use kube::core::response::StatusDetails;

    fn refusal(code: u16, message: &str, name: &str) -> kube::Error {
        let details: StatusDetails = serde_json::from_value(serde_json::json!({ "name": name })).unwrap();
        let status =
            Status { code, message: message.to_owned(), details: Some(details), ..Status::default() };
        kube::Error::Api(Box::new(status))
    }

    #[test]
    fn an_unknown_kind_is_told_as_not_installed() {
        let text =
            explain(refusal(404, "the server could not find the requested resource", ""), "list peerings")
                .to_string();

        assert!(text.contains("not installed") && text.contains("kubectl apply"), "{text}");
    }

    #[test]
    fn who_may_not_run_a_program_in_a_pod_is_told_the_right_that_it_takes() {
        let message = "pods \"isthmus-agent-x\" is forbidden: User \"a\" cannot get resource \"pods/exec\"";
        let text = explain(refusal(403, message, "isthmus-agent-x"), "run isthmus-agent").to_string();

        assert!(text.ends_with("ask for a role that allows get and create on pods/exec there"), "{text}");
    }

    #[test]
    fn the_api_servers_own_words_are_passed_on() {
        let text =
            explain(refusal(422, "spec.ttl: use a duration such as 15m", "west"), "invite west").to_string();

        assert_eq!(text, "invite west: spec.ttl: use a duration such as 15m");
    }
}
