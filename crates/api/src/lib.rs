// SPDX-License-Identifier: Apache-2.0
//! The custom resources, spec first. The YAML in `crds/` is generated from here.

pub mod about;
pub mod annotation;
pub mod condition;
pub mod crds;
pub mod mcs;
mod shape;
pub mod v1alpha1;
