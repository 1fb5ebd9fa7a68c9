//! SVIDs from Warren's own controllers: keys are made here, one for each SVID, and never leave this process.
//!
//! ```text
//! bundle (ConfigMap) ─▶ roots, who signs ─┐
//! pods to serve ─▶ source ─ due ─▶ client ─┴▶ SVID ─ leads to a root? ─▶ the pod's connections
//! ```

mod bundle;
mod client;
mod error;
mod source;

pub(crate) use source::{RemoteCa, RemoteCaConfig};
