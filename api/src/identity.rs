//! People: who they are, how they get in, and of what they are members.

mod cookies;
pub mod invitations;
pub mod me;
pub mod members;
pub mod sign_in;
pub mod views;
