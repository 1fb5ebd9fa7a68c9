//! `warren`: the node agent and the operator's command line.
fn main() {}
