//! A small client that tests run inside a pod as another user.
fn main() {}
