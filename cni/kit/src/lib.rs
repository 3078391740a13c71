// SPDX-License-Identifier: Apache-2.0
//! CNI for Rust: versions 0.1.0 to 1.1.0 of the specification, without an async runtime.
//!
//! A runtime takes containers through lists of plugins with [`runtime::chain::Runtime`].
//! A plugin implements [`plugin::Plugin`] and hands itself to [`plugin::main`]; variables, names, versions and the
//! form of results and errors are seen to.
//!
//! ```
//! use isthmus_cni_kit::error::Error;
//! use isthmus_cni_kit::plugin::{Plugin, Request, run};
//! use isthmus_cni_kit::result::AddResult;
//!
//! /// Passes on what the plugin before it did.
//! struct Nothing;
//!
//! impl Plugin for Nothing {
//!     fn add(&self, request: &Request) -> Result<AddResult, Error> {
//!         Ok(request.config.prev_result()?.unwrap_or_default())
//!     }
//!     fn del(&self, _: &Request) -> Result<(), Error> {
//!         Ok(())
//!     }
//!     fn check(&self, _: &Request) -> Result<(), Error> {
//!         Ok(())
//!     }
//!     fn status(&self, _: &Request) -> Result<(), Error> {
//!         Ok(())
//!     }
//!     fn gc(&self, _: &Request) -> Result<(), Error> {
//!         Ok(())
//!     }
//!     fn about(&self) -> String {
//!         "does nothing".to_owned()
//!     }
//! }
//!
//! // A program has `isthmus_cni_kit::plugin::main(&Nothing)` as its last line; tests need no process.
//! let env = [("CNI_COMMAND".to_owned(), "VERSION".to_owned())].into();
//! let mut stdout = Vec::new();
//! let exit = run(&Nothing, &env, &mut &b"{}"[..], &mut stdout, &mut Vec::new());
//! assert_eq!(exit, 0);
//! assert!(String::from_utf8_lossy(&stdout).contains("supportedVersions"));
//! ```

pub mod config;
pub mod error;
pub mod names;
pub mod plugin;
pub mod result;
pub mod runtime;
pub mod version;
