//! A client that hides nothing: requests as text, responses as they came.

use std::{collections::HashMap, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub struct Connection {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
    /// The connection ended before the body did.
    pub cut: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    pub fn over(stream: TcpStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Sends a request with these header lines, and reads the answer.
    pub async fn ask(&mut self, method: &str, path: &str, headers: &[&str]) -> Answer {
        self.send(&request(method, path, headers)).await;
        self.answer(method == "HEAD").await
    }

    /// The head of the next answer; `None`: the connection ended.
    pub async fn head(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self
                .buffer
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                break at;
            }
            if !self.fill().await {
                return None;
            }
        };
        let head = String::from_utf8(self.buffer.drain(..end + 4).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Some(Answer {
            status,
            headers,
            body: Vec::new(),
            cut: false,
        })
    }

    pub async fn answer(&mut self, without_body: bool) -> Answer {
        let mut answer = self.head().await.expect("an answer");
        if without_body || answer.status == 304 || answer.status == 204 {
            return answer;
        }
        let length: usize = answer.header("content-length").parse().unwrap();
        while self.buffer.len() < length {
            if !self.fill().await {
                answer.cut = true;
                break;
            }
        }
        let length = length.min(self.buffer.len());
        answer.body = self.buffer.drain(..length).collect();
        answer
    }

    /// Bytes that were read already and belong to no answer.
    pub fn take_buffered(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    /// The status of a GET, if the server does not close instead.
    pub async fn try_ask(&mut self, path: &str) -> Option<u16> {
        self.stream
            .write_all(request("GET", path, &[]).as_bytes())
            .await
            .ok()?;
        self.head().await.map(|head| head.status)
    }

    /// Whether the server closed without sending anything before.
    pub async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.fill().await
    }

    async fn fill(&mut self) -> bool {
        let mut piece = vec![0; 64 << 10];
        match self.stream.read(&mut piece).await {
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.buffer.extend_from_slice(&piece[..read]);
                true
            }
        }
    }
}

pub fn request(method: &str, path: &str, headers: &[&str]) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: edge\r\n");
    for line in headers {
        text.push_str(line);
        text.push_str("\r\n");
    }
    text + "\r\n"
}

/// One request on a new connection.
pub async fn get(address: SocketAddr, path: &str, headers: &[&str]) -> Answer {
    Connection::open(address)
        .await
        .ask("GET", path, headers)
        .await
}
