//! The texts of all mails to people.
//!
//! Each function turns plain data into a [`MailText`]. Links come in ready-made. Everything else may
//! have been chosen by a stranger: names and messages are cut, put on one line, and escaped in the
//! HTML part. A link is in the text part once, and the text part is complete without the other one.
//!
//! No mail says more than its receiver may know: one to an address that nobody confirmed yet does
//! not say who asked for it beyond their browser and network address.

mod layout;

use std::time::Duration;

use domain::clock::Timestamp;

use layout::{Letter, name};

pub use layout::MailText;

/// The browser that asked for something, as far as it tells.
#[derive(Clone, Copy, Debug)]
pub struct AskedFrom<'a> {
    /// The browser and the system, such as `Firefox on Linux`.
    pub browser: &'a str,
    /// The network address.
    pub address: &'a str,
}

impl AskedFrom<'_> {
    fn words(self) -> String {
        format!("{} at {}", name(self.browser), name(self.address))
    }
}

/// A sign-in by mail.
#[derive(Clone, Copy)]
pub struct SignIn<'a> {
    /// The host of the public URL, as in all mails.
    pub site: &'a str,
    /// The link that signs in.
    pub link: &'a str,
    /// The code for the browser that asked: eight digits.
    pub code: &'a str,
    /// How long both are valid.
    pub valid_for: Duration,
    /// Who asked.
    pub asked_from: AskedFrom<'a>,
}

/// The mail with a sign-in link and a code.
#[must_use]
pub fn sign_in(mail: &SignIn) -> MailText {
    let site = name(mail.site);
    Letter::new(format!("Sign in to {site}"))
        .says(format!(
            "Somebody asked to sign in to {site} with this address ({}).",
            mail.asked_from.words()
        ))
        .link("Open this link to sign in", mail.link)
        .says("Or type this code in the browser that asked:".to_owned())
        .code(mail.code)
        .says(format!(
            "They are valid for {}, and for one sign-in. Give the code to nobody.",
            span(mail.valid_for)
        ))
        .says(
            "If you did not ask for this, ignore this mail. Nobody is signed in without the link or the code."
                .to_owned(),
        )
        .finish()
}

/// A registration that waits for its address to be confirmed.
#[derive(Clone, Copy)]
pub struct VerifyAddress<'a> {
    /// The host of the public URL.
    pub site: &'a str,
    /// The link that confirms the address.
    pub link: &'a str,
    /// How long it is valid.
    pub valid_for: Duration,
    /// Who registered.
    pub asked_from: AskedFrom<'a>,
}

/// The mail that finishes a registration.
#[must_use]
pub fn verify_address(mail: &VerifyAddress) -> MailText {
    let site = name(mail.site);
    Letter::new(format!("Confirm your address for {site}"))
        .says(format!(
            "Somebody registered at {site} with this address ({}).",
            mail.asked_from.words()
        ))
        .link(
            "Open this link to confirm the address and finish the registration",
            mail.link,
        )
        .says(works_once(mail.valid_for))
        .says("If you did not register, ignore this mail. Without the link, nobody is registered with your address.".to_owned())
        .finish()
}

/// A registration with the address of a user.
#[derive(Clone, Copy)]
pub struct AlreadyRegistered<'a> {
    /// The host of the public URL.
    pub site: &'a str,
    /// The link to the page for signing in.
    pub link: &'a str,
    /// Who tried to register.
    pub asked_from: AskedFrom<'a>,
}

/// The mail to a user whose address was registered once more.
#[must_use]
pub fn already_registered(mail: &AlreadyRegistered) -> MailText {
    let site = name(mail.site);
    Letter::new(format!("You are already registered at {site}"))
        .says(format!(
            "Somebody tried to register at {site} with this address ({}). You are already registered, so nothing was changed.",
            mail.asked_from.words()
        ))
        .link("Sign in here", mail.link)
        .says("If it was not you, ignore this mail.".to_owned())
        .finish()
}

/// A request for a new password.
#[derive(Clone, Copy)]
pub struct PasswordReset<'a> {
    /// The host of the public URL.
    pub site: &'a str,
    /// The link to the page for a new password.
    pub link: &'a str,
    /// How long it is valid.
    pub valid_for: Duration,
    /// Who asked; nobody's browser if staff sent the link.
    pub asked_from: Option<AskedFrom<'a>>,
}

/// The mail with which a user sets a new password.
#[must_use]
pub fn password_reset(mail: &PasswordReset) -> MailText {
    let site = name(mail.site);
    let who = match mail.asked_from {
        Some(asked_from) => format!(
            "Somebody asked for a new password for you at {site} ({}).",
            asked_from.words()
        ),
        None => format!("The operator of {site} sent you a link for a new password."),
    };
    Letter::new(format!("Set a new password for {site}"))
        .says(who)
        .link("Open this link to set a new password", mail.link)
        .says(works_once(mail.valid_for))
        .says("A new password ends all your sessions.".to_owned())
        .says(
            "If you did not ask for this, ignore this mail. Your password stays as it is."
                .to_owned(),
        )
        .finish()
}

/// A change that a user is told of after it was made.
#[derive(Clone, Copy)]
pub struct Notice<'a> {
    /// The host of the public URL.
    pub site: &'a str,
    /// The time of the change.
    pub at: Timestamp,
    /// Who made it.
    pub asked_from: AskedFrom<'a>,
    /// The link to the page where the user can undo it or secure themselves.
    pub link: &'a str,
}

impl Notice<'_> {
    /// `change` is a whole sentence without its full stop.
    fn finish(&self, subject: String, change: &str, then: &str) -> MailText {
        Letter::new(subject)
            .says(format!(
                "{change} on {} ({}).",
                minute(self.at),
                self.asked_from.words()
            ))
            .says(then.to_owned())
            .link("If it was not you, open this link at once", self.link)
            .finish()
    }
}

/// The notice that the password was changed.
#[must_use]
pub fn password_changed(notice: &Notice) -> MailText {
    let site = name(notice.site);
    notice.finish(
        format!("Your password for {site} was changed"),
        &format!("Your password for {site} was changed"),
        "All your other sessions were ended. If it was you, there is nothing to do.",
    )
}

/// The notice, to the old address, that a user has another address now.
#[must_use]
pub fn email_changed(notice: &Notice, new_address: &str) -> MailText {
    let site = name(notice.site);
    notice.finish(
        format!("Your address for {site} was changed"),
        &format!("Your address for {site} was changed to {}", name(new_address)),
        "From now on you sign in with the new address, and mails go there. If it was you, there is nothing to do.",
    )
}

/// The notice that a passkey was added.
#[must_use]
pub fn passkey_added(notice: &Notice, passkey: &str) -> MailText {
    let site = name(notice.site);
    notice.finish(
        format!("A passkey for {site} was added"),
        &format!("The passkey \"{}\" for {site} was added", name(passkey)),
        "You can sign in with it from now on. If it was you, there is nothing to do.",
    )
}

/// The notice that a passkey was removed.
#[must_use]
pub fn passkey_removed(notice: &Notice, passkey: &str) -> MailText {
    let site = name(notice.site);
    notice.finish(
        format!("A passkey for {site} was removed"),
        &format!("The passkey \"{}\" for {site} was removed", name(passkey)),
        "Nobody can sign in with it any more. If it was you, there is nothing to do.",
    )
}

/// A change of address that waits for the new address to be confirmed.
#[derive(Clone, Copy)]
pub struct ConfirmEmail<'a> {
    /// The host of the public URL.
    pub site: &'a str,
    /// The link that confirms the new address.
    pub link: &'a str,
    /// How long it is valid.
    pub valid_for: Duration,
    /// Who asked.
    pub asked_from: AskedFrom<'a>,
}

/// The mail, to the new address, that completes a change of address.
#[must_use]
pub fn confirm_email(mail: &ConfirmEmail) -> MailText {
    let site = name(mail.site);
    Letter::new(format!("Confirm your new address for {site}"))
        .says(format!(
            "A user of {site} wants to use this address from now on ({}).",
            mail.asked_from.words()
        ))
        .link("Open this link to confirm the address", mail.link)
        .says(works_once(mail.valid_for))
        .says("If it was not you, ignore this mail. Nothing changes without the link.".to_owned())
        .finish()
}

/// An offer of membership in a publisher.
#[derive(Clone, Copy)]
pub struct Invitation<'a> {
    /// The host of the public URL.
    pub site: &'a str,
    /// The publisher's name.
    pub publisher: &'a str,
    /// The name or the address of the member who invites.
    pub inviter: &'a str,
    /// The role: `owner`, `admin`, `developer` or `viewer`.
    pub role: &'a str,
    /// What the inviter wrote.
    pub message: Option<&'a str>,
    /// The link to the page of the invitation.
    pub link: &'a str,
    /// How long it is valid.
    pub valid_for: Duration,
}

/// The mail with an invitation.
#[must_use]
pub fn invitation(mail: &Invitation) -> MailText {
    let site = name(mail.site);
    let publisher = name(mail.publisher);
    let inviter = name(mail.inviter);
    let letter = Letter::new(format!("Invitation to {publisher} at {site}")).says(format!(
        "{inviter} invites you to the publisher \"{publisher}\" at {site}, as {}.",
        name(mail.role)
    ));
    let letter = match mail.message {
        Some(message) => letter.quote(&format!("{inviter} writes:"), message),
        None => letter,
    };
    letter
        .link("Open this link to see the invitation", mail.link)
        .says(works_once(mail.valid_for))
        .says(format!(
            "If you do not know {inviter}, ignore this mail. You become a member only if you accept."
        ))
        .finish()
}

fn works_once(valid_for: Duration) -> String {
    format!("The link works once, within {}.", span(valid_for))
}

/// The time span in the largest unit that fits: `10 minutes`, `24 hours`, `7 days`.
fn span(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    let (number, unit) = if minutes >= 48 * 60 && minutes.is_multiple_of(24 * 60) {
        (minutes / (24 * 60), "day")
    } else if minutes >= 60 && minutes.is_multiple_of(60) {
        (minutes / 60, "hour")
    } else {
        (minutes, "minute")
    };
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{plural}")
}

/// The minute, in UTC: a mail does not know its reader's time zone.
fn minute(at: Timestamp) -> String {
    let text = at.to_string();
    let (day, time) = text.split_once('T').unwrap_or((&text, ""));
    let clock: String = time.chars().take("00:00".len()).collect();
    format!("{day} at {clock} UTC")
}

#[cfg(test)]
mod tests;
