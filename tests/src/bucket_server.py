"""A private bucket on moto, an independent S3 server, which checks each request's signature.

python bucket_server.py HOST PORT BUCKET KEYS: KEYS is a JSON object that maps keys to files. Prints
"ready" and the credentials of a user that may read and of one without rights, and serves until it
is stopped.
"""

import json
import sys
import threading
import urllib.request

import boto3
from botocore.config import Config
from moto.server import ThreadedMotoServer

host, port, bucket, keys = sys.argv[1:]
ThreadedMotoServer(ip_address=host, port=int(port)).start()
endpoint = f"http://{host}:{port}"


def client(service):
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="anybody",
        aws_secret_access_key="anything",
        config=Config(s3={"addressing_style": "path"}),
    )


iam, s3 = client("iam"), client("s3")
iam.create_user(UserName="edge")
may_read = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}
policy = json.dumps({"Version": "2012-10-17", "Statement": [may_read]})
iam.put_user_policy(UserName="edge", PolicyName="reads", PolicyDocument=policy)
key = iam.create_access_key(UserName="edge")["AccessKey"]
iam.create_user(UserName="stranger")
stranger = iam.create_access_key(UserName="stranger")["AccessKey"]
s3.create_bucket(Bucket=bucket)
for name, path in json.loads(keys).items():
    with open(path, "rb") as body:
        s3.put_object(Bucket=bucket, Key=name, Body=body, ContentType="video/mp4")
# From now on nobody is let in who can not sign.
reset = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", data=b"0",
    headers={"Content-Type": "text/plain"})
urllib.request.urlopen(reset).read()
credentials = {
    "id": key["AccessKeyId"],
    "secret": key["SecretAccessKey"],
    "stranger_id": stranger["AccessKeyId"],
    "stranger_secret": stranger["SecretAccessKey"],
}
print("ready", json.dumps(credentials), flush=True)
threading.Event().wait()
