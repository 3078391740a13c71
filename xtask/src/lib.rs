// SPDX-License-Identifier: Apache-2.0
//! What the Makefile calls: the lab of kind clusters, and the images that run in it.

pub mod cache;
pub mod conformance;
pub mod demo;
pub mod deps;
pub mod fuzz;
pub mod image;
pub mod images;
pub mod kind_config;
pub mod lab;
pub mod node_image;
pub mod on_node;
pub mod places;
pub mod rootfs;
pub mod run;
pub mod space;
pub mod suite;
pub mod tools;
pub mod topology;
pub mod vm;
