# Sourced by deploy/quickstart: real videos, made once and kept.
# shellcheck shell=bash

# make_ladder DIRECTORY  ladder/master.m3u8: HLS of two renditions, 24 s in segments of 2 s.
make_ladder() {
  local directory=$1
  [ -s "$directory/ladder/master.m3u8" ] && return 0
  rm -rf "$directory/making" && mkdir -p "$directory/making"
  ffmpeg -v error -nostdin -y -f lavfi -i 'testsrc2=size=640x360:rate=25' \
    -f lavfi -i 'sine=frequency=440:beep_factor=4:sample_rate=48000' -t 24 \
    -filter_complex '[0:v]split[high][rest];[rest]scale=320:180[low]' \
    -map '[high]' -map 1:a -map '[low]' -map 1:a \
    -c:v libx264 -preset ultrafast -pix_fmt yuv420p -g 50 -sc_threshold 0 \
    -b:v:0 1500k -b:v:1 400k -c:a aac -b:a 96k \
    -f hls -hls_time 2 -hls_playlist_type vod -hls_segment_type fmp4 -master_pl_name master.m3u8 \
    -var_stream_map 'v:0,a:0,name:360p v:1,a:1,name:180p' "$directory/making/%v/index.m3u8" ||
    die "ffmpeg could not make the ladder"
  rm -rf "$directory/ladder" && mv "$directory/making" "$directory/ladder"
  local objects
  objects=$(find "$directory/ladder" -type f | wc -l)
  note "made a ladder of HLS: 640x360 and 320x180, $objects objects"
}

# make_videos DIRECTORY  film.mp4 (H.264/AAC, its index at the end) and film.mkv (the same streams),
# some 200 MB each.
make_videos() {
  local directory=$1 began
  mkdir -p "$directory"
  if [ -s "$directory/film.mp4" ] && [ -s "$directory/film.mkv" ]; then
    note "the sample videos are there from an earlier run"
    return 0
  fi
  began=$(now_ms)
  note "making a sample video (H.264/AAC, 200 MB, index at the end) and the same as Matroska"
  # A short noisy clip is encoded and then repeated without encoding: seconds of work for minutes of
  # video.
  ffmpeg -v error -nostdin -y -f lavfi -i 'testsrc2=size=1280x720:rate=25,noise=alls=60:allf=t' \
    -f lavfi -i 'sine=frequency=440:beep_factor=4:sample_rate=48000' -t 10 \
    -c:v libx264 -preset ultrafast -pix_fmt yuv420p -g 50 \
    -b:v 28M -minrate 28M -maxrate 28M -bufsize 28M \
    -c:a aac -b:a 128k "$directory/clip.mkv" || die "ffmpeg could not make the sample video"
  ffmpeg -v error -nostdin -y -stream_loop 5 -i "$directory/clip.mkv" -c copy \
    "$directory/making.mkv" || die "ffmpeg failed"
  # Without +faststart the MP4 index (moov) is written last: playing it needs a real seek.
  ffmpeg -v error -nostdin -y -i "$directory/making.mkv" -c copy \
    "$directory/making.mp4" || die "ffmpeg failed"
  rm -f "$directory/clip.mkv"
  mv "$directory/making.mkv" "$directory/film.mkv"
  mv "$directory/making.mp4" "$directory/film.mp4"
  note "made in $((($(now_ms) - began) / 1000)) s:" \
    "$(du -h --apparent-size "$directory/film.mp4" | cut -f1) and" \
    "$(du -h --apparent-size "$directory/film.mkv" | cut -f1)"
}
