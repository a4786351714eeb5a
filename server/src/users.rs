//! `stationmaster users`: creates and shows people, and changes how they get in.
//!
//! Servers may run meanwhile, on either database engine, because these commands do not take the
//! lock of the data directory. A running server notices every change within a second. Each change
//! has a row in the operator's audit log. Nobody but the person ever sets or sees a password.

mod show;

use clap::{Args, Subcommand, ValueEnum};
use domain::{Code, people::EmailAddress, slug::Slug};
use identity::Service;
use persistence::{Context, NewUser, PageRequest, Store, StoreError, User};
use serde_json::json;

use crate::{
    config::{Config, Loaded},
    data_dir::{Credentials, Survey},
    failure::Failure,
    operate,
    people::People,
    text::say,
};
use show::Shown;

/// The actor in the audit log.
const ACTOR: &str = "users";
/// How many users are read at a time.
const PAGE: u64 = 200;

/// Options and subcommands of `users`.
#[derive(Debug, Args)]
pub struct Users {
    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a user, and print a link with which the person signs in once
    Create(Create),
    /// List all users, newest first
    List,
    /// Show a user: memberships, ways to sign in, sessions
    Show(One),
    /// Refuse every sign-in of a user, and end the user's sessions
    Disable(One),
    /// Let a disabled user sign in again
    Enable(One),
    /// Delete a user and everything that is known of the person
    Delete(One),
    /// Print a link with which a user signs in once, within 24 hours
    SignInLink(One),
    /// Mail a user a link to set a new password
    ResetLink(One),
    /// End sessions
    #[command(subcommand)]
    Sessions(Sessions),
    /// Give a user the operator's rights, or take them away
    Staff {
        /// The user
        #[command(flatten)]
        one: One,
        /// Whether the user has the operator's rights
        rights: OnOrOff,
    },
}

#[derive(Debug, Subcommand)]
enum Sessions {
    /// End all sessions of a user, who has to sign in again
    Revoke(One),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnOrOff {
    On,
    Off,
}

#[derive(Debug, Args)]
struct Create {
    /// The user
    #[command(flatten)]
    one: One,
    /// A name for people
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Give the user the operator's rights
    #[arg(long)]
    staff: bool,
    /// Make the user an owner of this publisher
    #[arg(long, value_name = "SLUG", value_parser = slug)]
    owner_of: Option<Slug>,
}

#[derive(Debug, Args)]
struct One {
    /// The user's e-mail address
    #[arg(value_name = "EMAIL", value_parser = address)]
    email: EmailAddress,
}

fn address(text: &str) -> Result<EmailAddress, String> {
    EmailAddress::parse(text).ok_or_else(|| "this is no e-mail address".to_owned())
}

fn slug(text: &str) -> Result<Slug, String> {
    Slug::parse(text).ok_or_else(|| "this is no slug of a publisher".to_owned())
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

/// What the operator reads for a failure of the store.
fn refused(error: StoreError) -> Failure {
    match error {
        StoreError::Refused(problem) => Failure::Failed(problem.detail),
        other => failed(other),
    }
}

/// Runs one of the subcommands.
///
/// # Errors
/// There is no such user, or what was asked for is refused; the store can't be opened.
pub async fn run(loaded: Loaded, users: Users) -> Result<(), Failure> {
    let desk = Desk::open(&loaded.config, users.json).await?;
    let result = desk.run(users.command).await;
    desk.store.close().await;
    result
}

/// The open store, and the service over it.
struct Desk {
    store: Store,
    people: Service,
    context: Context,
    json: bool,
}

impl Desk {
    async fn open(config: &Config, json: bool) -> Result<Self, Failure> {
        let survey = Survey::of(config).map_err(failed)?;
        if survey.fresh {
            return Err(failed(
                "there is no database here yet: start the server once, then run the command again",
            ));
        }
        let database = survey.database;
        let keys = Credentials::present_keys(config, &database).map_err(failed)?;
        let options = operate::store_options(config, &database, keys, false);
        let store = Store::open(options).await.map_err(failed)?;
        let settings = People::of(config, config.listen).settings(config);
        let people = Service::open(store.clone(), settings)
            .await
            .map_err(failed)?;
        Ok(Self {
            store,
            people,
            context: Context::system(ACTOR),
            json,
        })
    }

    async fn run(&self, command: Command) -> Result<(), Failure> {
        match command {
            Command::Create(options) => self.create(options).await,
            Command::List => self.list().await,
            Command::Show(one) => self.show(&one.email).await,
            Command::Disable(one) => self.set_enabled(&one.email, false).await,
            Command::Enable(one) => self.set_enabled(&one.email, true).await,
            Command::Delete(one) => self.delete(&one.email).await,
            Command::SignInLink(one) => self.sign_in_link(&one.email).await,
            Command::ResetLink(one) => self.reset_link(&one.email).await,
            Command::Sessions(Sessions::Revoke(one)) => self.revoke(&one.email).await,
            Command::Staff { one, rights } => {
                self.set_staff(&one.email, rights == OnOrOff::On).await
            }
        }
    }

    async fn user(&self, address: &EmailAddress) -> Result<User, Failure> {
        let found = self.store.identity().user_with_address(address).await;
        let found = found.map_err(failed)?;
        found.ok_or_else(|| failed(format!("no user has the address {address}")))
    }

    /// Prints a sentence, or a JSON object.
    fn tell(&self, words: &str, object: &serde_json::Value) {
        if self.json {
            say(&object.to_string());
        } else {
            say(words);
        }
    }

    /// Refuses if no link can be made: its origin is not known.
    fn need_origin(&self) -> Result<(), Failure> {
        if self.people.settings().enabled {
            return Ok(());
        }
        Err(Failure::Usage(
            "people can't sign in, so no link can be made: set STATIONMASTER_PUBLIC_URL to the URL under which browsers reach the server"
                .to_owned(),
        ))
    }

    async fn create(&self, options: Create) -> Result<(), Failure> {
        self.need_origin()?;
        let address = options.one.email;
        if let Some(slug) = &options.owner_of {
            self.check_publisher(slug).await?;
        }
        let name = options.name.as_deref().map(str::trim);
        let new = NewUser {
            address: address.clone(),
            verified: true,
            display_name: name.filter(|name| !name.is_empty()).map(str::to_owned),
            staff: options.staff,
        };
        let identity = self.store.identity();
        let created = identity.create_user(&self.context, new).await;
        let user = created.map_err(|error| match error {
            StoreError::Refused(problem) if problem.code == Code::AddressTaken => failed(format!(
                "there is a user with the address {address} already; `stationmaster users sign-in-link {address}` prints a link for that one"
            )),
            other => refused(other),
        })?;
        if let Some(slug) = &options.owner_of {
            let made = identity.make_owner(&self.context, user.id, slug).await;
            made.map_err(|error| {
                let Failure::Failed(why) = refused(error) else {
                    return failed("the user was created, and is no owner");
                };
                failed(format!("the user was created, and is no owner: {why}"))
            })?;
        }
        let link = self.people.operator_link(&self.context, user.id).await;
        let link = link.map_err(refused)?;
        let words = format!(
            "{} {} was created. This link signs the person in once, within 24 hours:\n{link}",
            user.address, user.id
        );
        let object = json!({ "user": show::user_json(&user), "sign_in_link": link });
        self.tell(&words, &object);
        Ok(())
    }

    async fn check_publisher(&self, slug: &Slug) -> Result<(), Failure> {
        let system = self.store.system();
        match system.trains().publisher_named(slug.as_str()).await {
            Ok(_) => Ok(()),
            Err(StoreError::Refused(problem)) if problem.code == Code::NotFound => {
                Err(failed(format!("there is no publisher {:?}", slug.as_str())))
            }
            Err(other) => Err(failed(other)),
        }
    }

    async fn list(&self) -> Result<(), Failure> {
        let (mut users, mut after) = (Vec::new(), None);
        loop {
            let page = PageRequest { limit: PAGE, after };
            let page = self.store.identity().users(page).await.map_err(failed)?;
            users.extend(page.items);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        show::list(&users, self.json);
        Ok(())
    }

    async fn show(&self, address: &EmailAddress) -> Result<(), Failure> {
        let user = self.user(address).await?;
        let shown = Shown::read(&self.store, &self.people, user).await;
        shown.map_err(failed)?.print(self.json);
        Ok(())
    }

    async fn set_enabled(&self, address: &EmailAddress, enabled: bool) -> Result<(), Failure> {
        let user = self.user(address).await?;
        let identity = self.store.identity();
        let changed = identity.set_user_enabled(&self.context, user.id, enabled);
        let changed = changed.await.map_err(refused)?;
        let words = match (user.is_enabled() == enabled, enabled) {
            (true, true) => format!("{address} is enabled already"),
            (true, false) => format!("{address} is disabled already"),
            (false, true) => format!("{address} may sign in again"),
            (false, false) => format!("{address} is disabled; all sessions have ended"),
        };
        self.tell(&words, &json!({ "user": show::user_json(&changed) }));
        Ok(())
    }

    async fn delete(&self, address: &EmailAddress) -> Result<(), Failure> {
        let user = self.user(address).await?;
        let identity = self.store.identity();
        let deleted = identity.delete_user(&self.context, user.id).await;
        deleted.map_err(refused)?;
        let words = format!("{address} {} was deleted", user.id);
        self.tell(&words, &json!({ "deleted": user.id.to_string() }));
        Ok(())
    }

    async fn sign_in_link(&self, address: &EmailAddress) -> Result<(), Failure> {
        self.need_origin()?;
        let user = self.user(address).await?;
        if !user.is_enabled() {
            return Err(failed(format!(
                "{address} is disabled; `stationmaster users enable {address}` comes first"
            )));
        }
        let link = self.people.operator_link(&self.context, user.id).await;
        let link = link.map_err(refused)?;
        self.tell(&link, &json!({ "sign_in_link": link }));
        Ok(())
    }

    async fn reset_link(&self, address: &EmailAddress) -> Result<(), Failure> {
        let user = self.user(address).await?;
        let mailed = self.people.mail_reset(&self.context, &user).await;
        mailed.map_err(refused)?;
        let words = format!("a link to set a new password is mailed to {address}");
        self.tell(&words, &json!({ "mailed_to": address.as_str() }));
        Ok(())
    }

    async fn revoke(&self, address: &EmailAddress) -> Result<(), Failure> {
        let user = self.user(address).await?;
        let identity = self.store.identity();
        let ended = identity.end_sessions(&self.context, user.id, None).await;
        let ended = ended.map_err(refused)?;
        let words = match ended {
            1 => format!("1 session of {address} has ended"),
            count => format!("{count} sessions of {address} have ended"),
        };
        self.tell(&words, &json!({ "sessions_ended": ended }));
        Ok(())
    }

    async fn set_staff(&self, address: &EmailAddress, staff: bool) -> Result<(), Failure> {
        let user = self.user(address).await?;
        let identity = self.store.identity();
        let changed = identity.set_staff(&self.context, user.id, staff).await;
        let changed = changed.map_err(refused)?;
        let words = if staff {
            format!("{address} has the operator's rights")
        } else {
            format!("{address} does not have the operator's rights")
        };
        self.tell(&words, &json!({ "user": show::user_json(&changed) }));
        Ok(())
    }
}
