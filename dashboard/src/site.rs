//! A whole site for the tests: a store of its own, whose clock the test moves, and the pages over it
//! in the stack that the server has.

use std::{sync::Arc, time::Duration};

use poem::{
    Endpoint, Request, Response,
    endpoint::{EndpointExt as _, make},
    error::NotFoundError,
    http::{HeaderMap, StatusCode, header},
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use domain::{
    clock::{Clock as _, ManualClock, SystemClock},
    people::{EmailAddress, Role},
    seal::MasterKeys,
    slug::Slug,
};
use identity::{
    Registration, Service, Settings,
    issuers::{Issuer, OpenIdSettings},
};
use outbound::{Client, ClientLimits, Policy};
use persistence::{Answer, Context, NewPublisher, NewUser, Store, StoreOptions, User};
use tests::{Browser, Look, Tab};
use web::{
    contract::Contract,
    http::{ConnectionLimits, PublicOrigin, StackOptions},
};

/// A site. It ends when dropped.
pub(crate) struct Site {
    pub(crate) service: Service,
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) origin: String,
    stop: CancellationToken,
    app: poem::endpoint::BoxEndpoint<'static, Response>,
    _dir: tempfile::TempDir,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn app(service: &Service, store: &Store) -> impl Endpoint<Output = Response> + 'static {
    let document = json!({"openapi": "3.1.0", "info": {"title": "x", "version": "1"}, "paths": {}});
    let mut options = StackOptions::new(Arc::new(Contract::new(document).unwrap()));
    let origin = PublicOrigin::new(service.settings().public_origin.clone());
    let pages = crate::pages(service.clone(), store.clone(), origin);
    options.pages = Some(pages.problems);
    let api = make(|_| async { Err::<Response, _>(poem::Error::from(NotFoundError)) });
    web::http::wrap(web::http::pages::attach(api, Some(pages)), options)
}

fn acme(url: &str) -> Issuer {
    let settings = OpenIdSettings {
        name: Slug::parse("acme").unwrap(),
        issuer: url.to_owned(),
        client_id: "public".to_owned(),
        client_secret: None,
        scopes: "openid".to_owned(),
    };
    let client = Client::new(Policy::anywhere(), ClientLimits::default());
    Issuer::openid(settings, client).unwrap()
}

impl Site {
    /// A site with passwords and open registration, without a floor under answers' times.
    pub(crate) async fn open() -> Self {
        Self::open_at(None, |settings| settings).await
    }

    /// The same with an issuer called Acme, and with other settings.
    pub(crate) async fn open_at(
        issuer: Option<&str>,
        change: impl FnOnce(Settings) -> Settings,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Real at first, since an issuer's tokens say when they were made.
        let clock = Arc::new(ManualClock::at(SystemClock.now()));
        let options = StoreOptions {
            database_url: format!("sqlite://{}", dir.path().join("store.db").display()),
            master_keys: MasterKeys::parse(&MasterKeys::generate_text("test")).unwrap(),
            clock: Arc::clone(&clock) as _,
            max_connections: 4,
            sqlite_synchronous_full: false,
            write_batch_max: 256,
            database_timeout: Duration::from_secs(10),
            migrate: true,
        };
        let store = Store::open(options).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // By this name alone browsers offer passkeys without https.
        let origin = format!("http://localhost:{}", listener.local_addr().unwrap().port());
        let settings = change(Settings {
            registration: Registration::Open,
            passwords: true,
            floor: Duration::ZERO,
            ..Settings::new(&origin)
        });
        let service = Service::open(store.clone(), settings).await.unwrap();
        let service = service.with_issuers(issuer.map(acme).into_iter().collect());
        let stop = CancellationToken::new();
        let limits = ConnectionLimits::default();
        let served = app(&service, &store);
        tokio::spawn(web::http::serve(listener, served, limits, stop.clone()));
        Self {
            app: app(&service, &store).boxed(),
            service,
            store,
            clock,
            origin,
            stop,
            _dir: dir,
        }
    }

    /// Adds a user with a verified address.
    pub(crate) async fn user(&self, address: &str, name: &str) -> User {
        let new = NewUser {
            address: address_of(address),
            verified: true,
            display_name: Some(name.to_owned()),
            staff: false,
        };
        let context = Context::system("test");
        self.store
            .identity()
            .create_user(&context, new)
            .await
            .unwrap()
    }

    /// Adds a publisher with an owner.
    pub(crate) async fn publisher(&self, slug: &str, name: &str, owner: &User) {
        let (context, slug) = (Context::system("test"), Slug::parse(slug).unwrap());
        let new = NewPublisher {
            slug: slug.clone(),
            display_name: name.to_owned(),
        };
        let publishers = self.store.system().publishers();
        let made = publishers.create_publisher(&context, new, |_| Answer::new(204, String::new()));
        made.await.unwrap();
        let identity = self.store.identity();
        identity
            .make_owner(&context, owner.id, &slug)
            .await
            .unwrap();
    }

    /// Makes a member of a user, by an invitation of the publisher's owner.
    pub(crate) async fn member(&self, slug: &str, owner: &User, user: &User, role: Role) {
        let invited = self.session(owner).await;
        let who = self.service.signed_in(&invited).await.unwrap().unwrap();
        let slug = Slug::parse(slug).unwrap();
        let principal = self.store.member(&who, &slug).await.unwrap().unwrap();
        let context = Context {
            actor: principal.actor(),
            ..Context::system("test")
        };
        let to = (&user.address, role);
        let invite = self.service.invite((&context, &principal), to, None, |_| {
            Answer::new(204, String::new())
        });
        invite.await.unwrap();
        let who = self.service.signed_in(&self.session(user).await).await;
        let who = who.unwrap().unwrap();
        let waiting = self.service.own_invitations(&who).await.unwrap();
        let id = waiting[0].invitation.id;
        let accepted = self.service.accept_own_invitation(&context, &who, id);
        accepted.await.unwrap();
        self.mail_to(user.address.as_str()).await;
    }

    /// The path of a sign-in link that the operator makes.
    pub(crate) async fn link(&self, user: &User) -> String {
        let context = Context::system("test");
        let link = self.service.operator_link(&context, user.id).await.unwrap();
        self.path(&link)
    }

    /// What the cookie of a new session of the user holds.
    pub(crate) async fn session(&self, user: &User) -> String {
        use secrecy::ExposeSecret as _;
        let link = self.link(user).await;
        let (_, token) = link.split_once("token=").unwrap();
        let context = Context::system("test");
        let session = self
            .service
            .redeem_link(&context, token, (None, true), None);
        session.await.unwrap().cookie.expose_secret().to_owned()
    }

    fn path(&self, link: &str) -> String {
        link.strip_prefix(&self.origin).unwrap().to_owned()
    }

    /// The text of the newest mail to an address that nobody has read.
    pub(crate) async fn mail_to(&self, address: &str) -> String {
        let identity = self.store.identity();
        let claimed = identity.claim_mails(100, Duration::from_hours(1));
        let mails = claimed.await.unwrap().claimed.into_iter();
        let mut texts = mails
            .filter_map(|due| due.mail)
            .filter(|mail| mail.to == address)
            .map(|mail| mail.text);
        texts.next_back().expect("there is a mail to the address")
    }

    /// The path of the link in a mail.
    pub(crate) fn link_in(&self, mail: &str) -> String {
        let found = mail
            .split_whitespace()
            .find(|word| word.starts_with(&self.origin));
        self.path(found.expect("the mail has a link"))
    }

    /// A tab for this site.
    pub(crate) async fn tab(&self, browser: &Browser, look: Look) -> Tab {
        browser.tab(&self.origin, look).await
    }

    /// A tab in which the user is signed in.
    pub(crate) async fn tab_of(&self, browser: &Browser, user: &User, look: Look) -> Tab {
        let tab = self.tab(browser, look).await;
        tab.open(&self.link(user).await).await;
        tab.press("Sign in").await;
        tab
    }

    /// Sends a request without a network and without a browser. The `Host` is the right one unless
    /// the headers have another.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Asked {
        let mut request = Request::builder()
            .method(method.parse().unwrap())
            .uri_str(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            let (_, host) = self.origin.split_once("://").unwrap();
            request = request.header("host", host);
        }
        if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/x-www-form-urlencoded");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.app.call(request.body(body.to_owned())).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        Asked {
            status,
            headers,
            body: response.into_body().into_string().await.unwrap(),
        }
    }
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Asked {
    /// Where the browser goes on; empty if nowhere.
    pub(crate) fn location(&self) -> &str {
        let found = self.headers.get(header::LOCATION);
        found.map_or("", |value| value.to_str().unwrap())
    }

    /// The cookies that are set, as a browser sends them back.
    pub(crate) fn cookies(&self) -> Vec<String> {
        let set = self.headers.get_all(header::SET_COOKIE).iter();
        set.map(|value| {
            value
                .to_str()
                .unwrap()
                .split(';')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect()
    }

    /// The token of the page's forms.
    pub(crate) fn csrf(&self) -> String {
        let (_, rest) = self.body.split_once("name=\"csrf\" value=\"").unwrap();
        rest.split('"').next().unwrap().to_owned()
    }
}

pub(crate) fn address_of(text: &str) -> EmailAddress {
    EmailAddress::parse(text).unwrap()
}

/// The eight digits in a mail.
pub(crate) fn code_in(mail: &str) -> String {
    let words = mail.split(|c: char| !c.is_ascii_digit());
    let mut codes = words.filter(|word| word.len() == 8);
    codes.next().expect("the mail has a code").to_owned()
}
