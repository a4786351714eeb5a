//! People: their addresses, their roles in publishers, and how they get in.

use crate::words;

mod address;
mod return_to;

pub use address::EmailAddress;
pub use return_to::ReturnTo;

words! {
    /// What a member may do in a publisher. Each role may do all that those after it may.
    #[derive(PartialOrd, Ord)]
    pub enum Role {
        /// Everything, owners and the end of the publisher included.
        Owner = "owner",
        /// Everything that an admin token may, and the members below owners.
        Admin = "admin",
        /// Read, work on runs, publish events, send deliveries again.
        Developer = "developer",
        /// Read.
        Viewer = "viewer",
    }
}

impl Role {
    /// Whether the role may do all that `other` may.
    #[must_use]
    pub fn includes(self, other: Self) -> bool {
        self <= other
    }

    /// Whether a member of this role may invite, change or remove members of `other`: nobody gives
    /// or takes more than one has.
    #[must_use]
    pub fn manages(self, other: Self) -> bool {
        self.includes(Self::Admin) && self.includes(other)
    }
}

words! {
    /// How a person signed in.
    pub enum SignInMethod {
        /// A mailed link, or the code beside it.
        Link = "link",
        /// A password.
        Password = "password",
        /// A passkey.
        Passkey = "passkey",
        /// A provider: an OpenID Connect issuer, or GitHub.
        Provider = "provider",
        /// A link that the operator made.
        Operator = "operator",
        /// The link of an invitation.
        Invitation = "invitation",
    }
}

words! {
    /// What a single-use token is good for. It is good for nothing else.
    pub enum Purpose {
        /// Sign in, by a mailed link or its code.
        SignIn = "sign_in",
        /// Sign in, by a link that the operator made.
        OperatorSignIn = "operator_sign_in",
        /// Finish a registration.
        Register = "register",
        /// Set a new password.
        Reset = "reset",
        /// Take over a new address.
        ChangeAddress = "change_address",
        /// Answer a passkey's challenge, to register one.
        PasskeyRegistration = "passkey_registration",
        /// Answer a passkey's challenge, to sign in.
        PasskeySignIn = "passkey_sign_in",
        /// Come back from a provider.
        Provider = "provider",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_includes_those_below_it() {
        let all = Role::ALL;
        for (i, role) in all.into_iter().enumerate() {
            for (j, other) in all.into_iter().enumerate() {
                assert_eq!(role.includes(other), i <= j, "{role:?} {other:?}");
            }
        }
    }

    #[test]
    fn nobody_manages_above_themselves() {
        assert!(Role::Owner.manages(Role::Owner));
        assert!(Role::Admin.manages(Role::Admin) && !Role::Admin.manages(Role::Owner));
        assert!(!Role::Developer.manages(Role::Viewer) && !Role::Viewer.manages(Role::Viewer));
    }
}
