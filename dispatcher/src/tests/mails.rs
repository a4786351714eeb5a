//! Mails, from the commit to a mail server.

use std::net::Ipv4Addr;

use outbound::mail::Mailer;
use persistence::NewMail;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::*;

/// A mail server that gives these answers to `RCPT`, the last one again and again.
struct MailServer {
    port: u16,
    heard: Arc<Mutex<Vec<String>>>,
}

impl MailServer {
    async fn start(answers: Vec<&'static str>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let log = Arc::clone(&heard);
        tokio::spawn(async move {
            let mut answers = answers.into_iter();
            let mut last = answers.next().unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                talk(stream, last, &log).await;
                last = answers.next().unwrap_or(last);
            }
        });
        Self { port, heard }
    }

    fn outgoing(&self) -> Outgoing {
        let url = format!("smtp://127.0.0.1:{}?tls=none", self.port);
        let from = "mail@stationmaster.example".parse().unwrap();
        let mailer = Mailer::new(url.parse().unwrap(), from, "stationmaster.example").unwrap();
        Outgoing::Smtp(Box::new(mailer))
    }

    /// The lines that begin with this word.
    fn lines(&self, begin: &str) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        let lines = heard.iter().filter(|line| line.starts_with(begin));
        lines.cloned().collect()
    }
}

async fn talk(stream: TcpStream, to_receiver: &str, heard: &Mutex<Vec<String>>) {
    let mut stream = BufReader::new(stream);
    let (mut answer, mut in_data) = ("220 fake", false);
    loop {
        if !answer.is_empty() {
            let line = format!("{answer}\r\n");
            let _ = stream.get_mut().write_all(line.as_bytes()).await;
        }
        let mut line = String::new();
        if !stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
            return;
        }
        let line = line.trim_end();
        heard.lock().unwrap().push(line.to_owned());
        answer = match line.split(' ').next().unwrap_or_default() {
            "." => {
                in_data = false;
                "250 taken"
            }
            _ if in_data => "",
            "RCPT" => to_receiver,
            "DATA" => {
                in_data = true;
                "354 go on"
            }
            "QUIT" => "221 bye",
            _ => "250 ok",
        };
    }
}

impl World {
    async fn mail(&self, lasts: Duration) {
        let mail = NewMail {
            to: "ada@a.example".to_owned(),
            subject: "Sign in".to_owned(),
            text: "The link".to_owned(),
            html: "<p>The link</p>".to_owned(),
            kind: "sign_in",
            lasts,
        };
        self.store.identity().write_mail(&mail).await.unwrap();
    }

    /// Waits until no mail is to be sent any more.
    async fn mails_end(&self) {
        for _ in 0..1000 {
            let left = self.store.identity().claim_mails(0, Duration::ZERO).await;
            if left.unwrap().next.is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("a mail is still to be sent");
    }
}

#[tokio::test]
async fn a_commit_wakes_the_sender_and_a_passing_refusal_is_tried_again() {
    let mut world = World::new("5s").await;
    world.settings.mails = Schedule::parse("20ms").unwrap();
    let server = MailServer::start(vec!["451 later", "451 later", "250 ok"]).await;
    let stop = CancellationToken::new();
    let client = Client::new(policy(), limits());
    let dispatcher = world.start_until(client, server.outgoing(), stop.clone());
    world.mail(Duration::from_mins(10)).await;
    world.mails_end().await;
    assert_eq!(server.lines("RCPT").len(), 3);
    assert_eq!(server.lines("Subject:"), ["Subject: Sign in"]);
    assert!(dispatcher.healthy());
    stop.cancel();
    dispatcher.drained().await;
}

#[tokio::test]
async fn a_mail_that_can_not_arrive_is_not_tried_again() {
    let mut world = World::new("5s").await;
    world.settings.mails = Schedule::parse("20ms").unwrap();
    let server = MailServer::start(vec!["550 no such user"]).await;
    let stop = CancellationToken::new();
    let client = Client::new(policy(), limits());
    let dispatcher = world.start_until(client, server.outgoing(), stop.clone());
    world.mail(Duration::from_mins(10)).await;
    world.mails_end().await;
    assert_eq!(server.lines("RCPT").len(), 1);
    // Too old before it was written: the server is not even asked.
    world.mail(Duration::ZERO).await;
    world.mails_end().await;
    assert_eq!(server.lines("RCPT").len(), 1);
    stop.cancel();
    dispatcher.drained().await;
}

#[tokio::test]
async fn without_a_mail_server_nothing_waits() {
    let world = World::new("5s").await;
    let (dispatcher, stop) = world.start();
    world.mail(Duration::from_mins(10)).await;
    world.mails_end().await;
    stop.cancel();
    dispatcher.drained().await;
}
