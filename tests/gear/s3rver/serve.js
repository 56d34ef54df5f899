// s3rver on loopback at a port that the system gives, which it prints, with one bucket; until its standard input ends.
// NODE_PATH says where it is installed (scripts/test_gear.sh s3rver).
const S3rver = require('s3rver');
const [directory, bucket] = process.argv.slice(2);
const server = new S3rver({
  address: '127.0.0.1', port: 0, silent: true, directory, configureBuckets: [{ name: bucket }],
});
server.run().then(({ port }) => console.log(port));
process.stdin.on('end', () => process.exit(0)).resume();
