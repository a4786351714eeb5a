//! What answers show of people.

use poem_openapi::Enum;
use view_derive::View;

use domain::people::Role;

/// What a member may do in a publisher. Each role may do all that those after it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, View)]
#[oai(rename = "Role", rename_all = "snake_case")]
#[view(of = Role, into = Role)]
pub enum RoleName {
    /// Everything, owners and the end of the publisher included.
    Owner,
    /// Everything that an admin token may, and the members below owners.
    Admin,
    /// Read, work on runs, publish events, send deliveries again.
    Developer,
    /// Read.
    Viewer,
}
