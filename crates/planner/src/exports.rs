// SPDX-License-Identifier: Apache-2.0
//! Our own exports: what others learn of them, and the conditions of KEP-1645 on each ServiceExport.

use std::collections::BTreeMap;

use isthmus_api::condition::{READY, Wanted};
use isthmus_api::mcs::ServiceExportStatus;
use isthmus_mesh::grant::ServiceName;
use isthmus_mesh::record::{Export, Record};

use crate::conditions::{self, is, unknown};
use crate::plan::{Kind, ObjectKey, Plan};
use crate::services::Services;
use crate::snapshot::{Problem, Snapshot};

const VALID: &str = "Valid";
const CONFLICT: &str = "Conflict";

/// Our exports by name: as others see them, or why they cannot be exported.
pub(crate) type Exports = BTreeMap<ServiceName, Result<Export, Problem>>;

pub(crate) fn take(snapshot: &Snapshot) -> Exports {
    snapshot
        .exports
        .iter()
        .filter(|(_, seen)| !seen.deleting)
        .map(|(name, _)| (name.clone(), export(snapshot, name)))
        .collect()
}

fn export(snapshot: &Snapshot, name: &ServiceName) -> Result<Export, Problem> {
    let seen = &snapshot.exports[name];
    let wish = seen.value.as_ref().map_err(Clone::clone)?;
    let service = snapshot.services.get(name).ok_or_else(|| Problem {
        reason: "NoService",
        message: format!("there is no Service {name}; create it, or delete this ServiceExport"),
    })?;
    if service.external_name {
        let message = "a Service of type ExternalName cannot be exported; use another type".to_owned();
        return Err(Problem { reason: "InvalidServiceType", message });
    }
    let export = Export {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        created_at: seen.created,
        kind: service.kind,
        ports: service.ports.clone(),
        session_affinity: service.session_affinity,
        internal_traffic_policy: service.internal_traffic_policy,
        traffic_distribution: service.traffic_distribution.clone(),
        ip_families: service.ip_families.clone(),
        labels: wish.labels.clone(),
        annotations: wish.annotations.clone(),
    };
    let record = Record::Export(export.clone());
    record.check().map_err(|error| Problem {
        reason: "Failed",
        message: format!("other clusters would not take it: {error}"),
    })?;
    Ok(export)
}

pub(crate) fn statuses(snapshot: &Snapshot, exports: &Exports, services: &Services<'_>, plan: &mut Plan) {
    for (name, export) in exports {
        let seen = &snapshot.exports[name];
        let conflicts = services.conflicts(name);
        let wanted = match export {
            Err(problem) => invalid(problem),
            Ok(_) => [
                is(VALID, true, VALID, ""),
                ready(services, name),
                is(CONFLICT, !conflicts.is_empty(), "NoConflicts", explain(&conflicts)),
            ],
        };
        let old = &seen.status.conditions;
        let mut conditions = conditions::exactly(old, &wanted, seen.generation, snapshot.now);
        if !conflicts.is_empty() && export.is_ok() {
            let reasons: Vec<&str> = conflicts.iter().map(|conflict| conflict.reason()).collect();
            let conflict = conditions.iter_mut().filter(|one| one.type_ == CONFLICT);
            conflict.for_each(|one| one.reason = reasons.join(","));
        }
        let key = ObjectKey::namespaced(Kind::ServiceExport, &name.namespace, &name.name);
        plan.status(key, &ServiceExportStatus { conditions });
    }
}

fn invalid(problem: &Problem) -> [Wanted; 3] {
    // KEP-1645 knows two reasons for Valid=False; anything else is a failure to export.
    let valid = problem.reason == "Failed";
    let message = if valid { "" } else { problem.message.as_str() };
    [
        is(VALID, valid, if valid { VALID } else { problem.reason }, message),
        is(READY, false, "Failed", &problem.message),
        is(CONFLICT, false, "NoConflicts", ""),
    ]
}

fn ready(services: &Services<'_>, name: &ServiceName) -> Wanted {
    match services.foreign_import(name) {
        true => is(
            READY,
            false,
            "Failed",
            format!(
                "a ServiceImport {name} exists that Isthmus did not make; delete it to have it made anew"
            ),
        ),
        false if services.is_held(name) => {
            unknown(READY, "Pending", "waits for the first word of a peer that exports it too")
        }
        false => is(READY, true, "Exported", ""),
    }
}

fn explain(conflicts: &std::collections::BTreeSet<crate::merge::Conflict>) -> String {
    if conflicts.is_empty() {
        return String::new();
    }
    "the clusters that export this service do not agree; the oldest export wins".to_owned()
}
