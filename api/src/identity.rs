//! People: who they are, how they get in, and of what they are members.

pub mod views;
