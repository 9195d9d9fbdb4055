#!/usr/bin/env bash
# What cluster.yaml needs of an AWS account, made once by the `aws` command; prints what to put into it.
#
#   bash experiments/cluster/aws.sh BUCKET YOUR-ADDRESS [REGION]     # the bucket is there already
#
# Makes a security group `kdfm` in the default network: ssh from that address alone, and all ports among
# its own members. Makes two roles with instance profiles: both may read and write the bucket; kdfm-head
# may also do anything with EC2 (it starts and ends instances) and give kdfm-worker to them. A name that
# exists already stops it, with AWS's own message. Run against a simulated AWS, not yet against AWS.
set -euo pipefail
bucket=${1:?the name of the bucket} address=${2:?your address, as 203.0.113.7} region=${3:-us-east-1}
export AWS_DEFAULT_REGION=$region AWS_PAGER=

allow() { echo "{\"Version\": \"2012-10-17\", \"Statement\": [{\"Effect\": \"Allow\", $1}]}"; }

# First what changes nothing: the images.
image() { aws ssm get-parameter --query Parameter.Value --output text --name "/aws/service/$1"; }
ubuntu=$(image canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id)
nvidia=$(image deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id)

group=$(aws ec2 create-security-group --group-name kdfm --description "kdfm_ray: ssh from one address" \
  --query GroupId --output text)
aws ec2 authorize-security-group-ingress --output text --group-id "$group" \
  --protocol tcp --port 22 --cidr "$address/32"
aws ec2 authorize-security-group-ingress --output text --group-id "$group" \
  --protocol all --source-group "$group"

for role in kdfm-head kdfm-worker; do
  aws iam create-role --output text --role-name $role --assume-role-policy-document \
    "$(allow '"Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"')"
  aws iam put-role-policy --role-name $role --policy-name bucket --policy-document \
    "$(allow '"Action": ["s3:ListBucket", "s3:*Object", "s3:*MultipartUpload*"],
      "Resource": ["arn:aws:s3:::'"$bucket"'", "arn:aws:s3:::'"$bucket"'/*"]')"
  aws iam create-instance-profile --output text --instance-profile-name $role
  aws iam add-role-to-instance-profile --instance-profile-name $role --role-name $role
done
aws iam attach-role-policy --role-name kdfm-head \
  --policy-arn arn:aws:iam::aws:policy/AmazonEC2FullAccess
aws iam put-role-policy --role-name kdfm-head --policy-name workers --policy-document \
  "$(allow '"Action": "iam:PassRole", "Resource": "arn:aws:iam::*:role/kdfm-worker"')"

echo "for cluster.yaml: sg-REPLACE $group, ami-REPLACE-UBUNTU $ubuntu, ami-REPLACE-NVIDIA $nvidia"
