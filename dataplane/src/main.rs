//! The product binary `millrace`.

fn main() {}
