//! HTTP/2 as scrubbing players use it: streams opened and cancelled at once. Frames are written by
//! hand, because all of them must be in one packet.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::objects::{CHUNK, Edge, bytes_of};

const HEADERS: u8 = 1;
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const GO_AWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A GET of a range of `/films/a`, in HPACK without a table of its own (RFC 7541).
fn request(stream: u32, range: &str) -> Vec<u8> {
    let text = |block: &mut Vec<u8>, text: &str| {
        block.push(text.len() as u8);
        block.extend(text.as_bytes());
    };
    // `:method: GET`, `:scheme: http`, then `:path`, `:authority` and `range` with a value each.
    let mut block = vec![0x82, 0x86, 0x04];
    text(&mut block, "/films/a");
    block.push(0x01);
    text(&mut block, "edge");
    block.extend([0x0f, 50 - 15]);
    text(&mut block, &format!("bytes={range}"));
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block)
}

fn opened_and_cancelled(streams: impl Iterator<Item = u32>) -> Vec<u8> {
    const CANCEL: [u8; 4] = [0, 0, 0, 8];
    let pair = |stream| [request(stream, "0-"), frame(RST_STREAM, 0, stream, &CANCEL)].concat();
    streams.flat_map(pair).collect()
}

async fn open(edge: &Edge) -> TcpStream {
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    let settings = frame(4, 0, 0, &[]);
    stream
        .write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", settings.as_slice()].concat())
        .await
        .unwrap();
    stream
}

/// The stream's body, if it has an end. `None`: the connection ends, or the server announces that
/// it will.
async fn body(connection: &mut TcpStream, stream: u32) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut head = [0; 9];
        connection.read_exact(&mut head).await.ok()?;
        let [_, a, b, c] = [0, head[0], head[1], head[2]];
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        connection.read_exact(&mut payload).await.ok()?;
        let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match head[3] {
            GO_AWAY => return None,
            DATA if of == stream => {
                body.extend(payload);
                if head[4] & END_STREAM != 0 {
                    return Some(body);
                }
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_body_outlives_thirty_streams_opened_and_cancelled_in_one_packet() {
    let edge = Edge::start().await;
    let object = edge.cold("a", 3 * CHUNK);
    object.land(0);
    let mut connection = open(&edge).await;
    let (first, last) = (CHUNK - 10, CHUNK + 29_999);
    connection
        .write_all(&request(1, &format!("{first}-{last}")))
        .await
        .unwrap();
    edge.until("it is under way", |metrics| metrics.requests_active() == 1)
        .await;
    for scrub in 0..3 {
        let streams = (0..30).map(|nth| 3 + 2 * (scrub * 30 + nth));
        connection
            .write_all(&opened_and_cancelled(streams))
            .await
            .unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    object.land(1);
    let body = body(&mut connection, 1)
        .await
        .expect("the connection lives");
    assert!(body == bytes_of(first..last + 1));
}

#[tokio::test]
async fn a_flood_of_cancelled_streams_ends_its_connection() {
    let edge = Edge::start().await;
    edge.cold("a", 3 * CHUNK);
    let mut connection = open(&edge).await;
    let flood = opened_and_cancelled((0..5_000).map(|nth| 1 + 2 * nth));
    // The server may close before it has read all of it.
    let _ = connection.write_all(&flood).await;
    assert_eq!(body(&mut connection, 1).await, None);
    edge.until("nothing is left of it", |metrics| {
        metrics.requests_active() == 0
    })
    .await;
}
